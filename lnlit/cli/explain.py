"""Explains in one line why a configuration was refused: the place, what is wrong, what is allowed.

jsonargparse reports a refused value through every layer of types that it tried. Instead, the user's tree is compared
with the parser, and the first key that does not fit is named, or all names that were renamed.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Union

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Unset

from lnlit import own
from lnlit.cli import names
from lnlit.cli.parser import StrictParser
from lnlit.cli.written import Place, Written
from lnlit.errors import UserError, did_you_mean, unknown_key
from lnlit.renamed import CLASSES, keys_now_called, now_called

_SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")
_NOT_SETTINGS = ("help", "config", "print_config", "print_shtab")


class _Problem(Exception):
    """What is wrong at a place. `at` is the offending key below it, to point at its line rather than at its parent's.
    `is_former` says that it is a name which has changed."""

    def __init__(self, place: Place, text: str, at: str | None = None, is_former: bool = False) -> None:
        super().__init__(text)
        self.place, self.text, self.is_former = place, text, is_former
        self.at = place if at is None else (*place, at)


@contextmanager
def explained(parser: ArgumentParser, written: Written, stage: Any = None) -> Iterator[None]:
    """Turns jsonargparse's `ArgumentError` about `written` into a `UserError` that explains it."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(explain(parser, written, str(error), stage)) from error


def explain(parser: ArgumentParser, written: Written, reason: str, stage: Any = None) -> str:
    """Explains in one line why `parser` refused `written`. `stage` is the function whose arguments are read, if the
    command is a stage. `reason` is jsonargparse's own message; it is shortened and returned if no fault is found here.
    """
    problems = list(_Check(written.folders).settings(parser, stage, written.tree, ()))
    # What else is wrong is told when the names are right, for a former name may be the cause of it.
    told = [problem for problem in problems if problem.is_former] or problems[:1]
    return "; ".join(f"{written.where(p.at)}{_dotted(p.place)}: {p.text}" for p in told) or _shortened(reason)


class _Check:
    """Compares settings with what is expected, and yields all problems. `folders` are those of the files that are
    read, to which file names in them are relative."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self.folders = folders

    def settings(self, parser: ArgumentParser, owner: Any, given: Any, place: Place) -> Iterator[_Problem]:
        """Checks the arguments of a class, a record or a stage, for which `parser` is."""
        if owner is not None and isinstance(given, Mapping):
            former = _former_keys(owner, given)
            if former:
                yield _Problem(place, _told_former(former), at=next(iter(former)), is_former=True)
            given = {key: value for key, value in given.items() if key not in former}
        yield from self.group(parser, given, place)

    def group(self, parser: ArgumentParser, given: Any, place: Place, prefix: str = "") -> Iterator[_Problem]:
        """Checks the mapping `given` against the settings of `parser` whose names start with `prefix`."""
        if isinstance(given, str):
            yield from self.file(parser, given, place, prefix)
            return
        actions: dict[str, Any] = {action.dest: action for action in parser._actions if _is_setting(action)}
        within = [action for name, action in actions.items() if name.startswith(prefix)]
        if not isinstance(given, Mapping):
            yield _wrong(place, "a mapping", given, any(_is_required(action) for action in within))
            return
        allowed = {action.dest.removeprefix(prefix).partition(".")[0] for action in within}
        checks: list[Iterator[_Problem]] = []
        given = _nested(given)
        for key, value in given.items():
            action = actions.get(f"{prefix}{key}")
            if str(key) not in allowed and str(key).endswith("+"):  # what it adds to must be a list
                name = str(key).removesuffix("+")
                action, value = actions.get(f"{prefix}{name}"), value if isinstance(value, list) else [value]
                key = name if _lists(_arms(getattr(action, "_typehint", None))) else key
            if str(key) not in allowed:
                yield _unknown(place, str(key), allowed)
            elif action is not None and hasattr(action, "_typehint"):
                checks.append(self.value(action._typehint, value, (*place, key), action.default))
            else:
                checks.append(self.group(parser, value, (*place, key), f"{prefix}{key}."))
        yield from chain.from_iterable(checks)
        for action in filter(_is_required, within):
            key, _, deeper = action.dest.removeprefix(prefix).partition(".")
            if key not in given:
                classes = () if deeper else _classes(_arms(action._typehint))
                yield _Problem(place, f"the key {key!r} is missing.{_offer(classes)}")

    def file(self, parser: ArgumentParser, name: str, place: Place, prefix: str) -> Iterator[_Problem]:
        """Checks a group that is given as the name of its own YAML file."""
        places = [folder / name for folder in (*self.folders, Path())]
        file = next((path for path in places if path.is_file()), Path(name))
        try:
            given = own.anchored(yaml.safe_load(file.read_text(encoding="utf-8")), file.parent)
        except (OSError, yaml.YAMLError):
            yield _Problem(place, f"expected a mapping or the name of a YAML file, got {name!r}")
            return
        for problem in self.group(parser, given, (), prefix):
            inner = f"{_dotted(problem.place)}: " if problem.place else ""
            yield _Problem(place, f"{file}: {inner}{problem.text}", is_former=problem.is_former)

    def value(self, hint: Any, value: Any, place: Place, default: Any = Unset) -> Iterator[_Problem]:
        """Checks `value` against the type `hint`; a `default` of `Unset` means that there is none."""
        arms = _arms(hint)
        classes, lists = _classes(arms), _lists(arms)
        records = [arm for arm in arms if dataclasses.is_dataclass(arm)]
        mappings = [arm for arm in arms if issubclass(_origin(arm), Mapping)]
        is_class_name = isinstance(value, str) and str not in arms and bool(classes)
        if is_class_name or (isinstance(value, Mapping) and classes and ("class_path" in value or not mappings)):
            yield from self.named(classes, value, place, default)
        elif records and (isinstance(value, Mapping) or (_is_file_name(value, arms) and not _fits(hint, value))):
            record = max(records, key=lambda record: _in_common(record, value))
            yield from self.settings(_parser_of(record), record, value, place)
        elif isinstance(value, Mapping) and mappings and len(typing.get_args(mappings[0])) == 2:
            kind = typing.get_args(mappings[0])[1]
            for key, item in value.items():
                yield from self.value(kind, item, (*place, key))
        elif isinstance(value, list) and lists and typing.get_args(lists[0]):
            kind = typing.get_args(lists[0])[0]
            for index, item in enumerate(value):
                yield from self.value(kind, item, (*place, index))
        elif not _fits(hint, value):
            problem = _wrong(place, _described(hint), value, default is Unset)
            if lists and isinstance(value, str | int | float):
                problem = _Problem(place, f"{problem.text}. Write a list as '[a, b]'.")
            yield problem

    def named(self, bases: tuple[type, ...], value: Any, place: Place, default: Any) -> Iterator[_Problem]:
        """Checks `{class_path, init_args}`, or a bare class name, if a subclass of one of `bases` is expected."""
        spec = {"class_path": value} if isinstance(value, str) else value
        for key in spec:
            if key not in _SPEC_KEYS:
                hint = " A class's own arguments belong under init_args." if "class_path" in spec else ""
                yield _unknown(place, key, _SPEC_KEYS, hint)
                return
        name = spec.get("class_path", default.get("class_path") if isinstance(default, Mapping) else Unset)
        if name is Unset:
            yield _Problem(place, f"the key 'class_path' is missing; it names {_described(bases)}.{_offer(bases)}")
            return
        at = (*place, "class_path") if "class_path" in spec and value is spec else place
        if isinstance(name, str) and name in CLASSES and (new := now_called(name, names.choices(bases))):
            yield _Problem(at, f"{name} is now called {new}", is_former=True)
            name = new
        try:
            cls = _class_of(bases, name, at)
        except _Problem as problem:
            yield problem
            return
        yield from self.settings(_parser_of(cls), cls, spec.get("init_args", {}), (*place, "init_args"))


def _is_file_name(value: Any, arms: list[Any]) -> bool:
    """Whether a value stands for a YAML file with settings. Beside words that are allowed, a wrong word does not."""
    words = any(typing.get_origin(arm) is Literal for arm in arms)
    return isinstance(value, str) and (not words or value.endswith((".yaml", ".yml")))


def _nested(given: Mapping[Any, Any]) -> dict[Any, Any]:
    """The settings of a group with each dotted key as a mapping: `a.b: 1` stands for `a: {b: 1}`."""
    tree: dict[Any, Any] = {}
    for key, value in given.items():
        first, dot, rest = str(key).partition(".")
        if dot and first and rest:
            key, value = first, {rest: value}
        old = tree.get(key)
        tree[key] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return tree


def _former_keys(owner: Any, given: Mapping[str, Any]) -> dict[str, str]:
    """Maps those of the given keys that have another name now to it. A subclass may use a former name for a setting of
    its own."""
    unknown = [key for key in given if key not in inspect.signature(owner).parameters]
    renamed: dict[str, str] = {}
    for kind in getattr(owner, "__mro__", (owner,)):
        renamed |= keys_now_called(kind.__name__, unknown)
    return renamed


def _told_former(renamed: Mapping[str, str]) -> str:
    former: dict[str, list[str]] = {}
    for key, new in renamed.items():
        former.setdefault(new, []).append(key)
    told = ((new, ", ".join(keys), "is" if len(keys) == 1 else "are") for new, keys in former.items())
    return "; ".join(f"{keys} {are} now called {new}" for new, keys, are in told)


def _class_of(bases: tuple[type, ...], name: Any, place: Place) -> Any:
    """The class that a configuration names. Raises the problem if it may not be named there."""
    if not isinstance(name, str):
        raise _wrong(place, "the name of a class", name, required=True)

    def near() -> str:
        return did_you_mean(name.rpartition(".")[2], names.choices(bases)) + _offer(bases)

    try:
        path = names.resolve(bases, name)
        if "." not in path:
            raise _Problem(place, f"unknown class {name!r}.{near()}")
        cls = names.imported(path)
    except UserError as error:
        raise _Problem(place, str(error)) from None
    except names.Foreign:
        policy = f"{names.POLICY}: here {_described(bases)}."
        raise _Problem(place, f"{name!r} may not be named here. {policy}{_offer(bases)}") from None
    except (ImportError, AttributeError) as error:
        raise _Problem(place, f"cannot import {name!r}: {error}.{near()}") from None
    except ValueError as error:
        raise _Problem(place, _shortened(str(error))) from None
    if not (inspect.isclass(cls) and issubclass(cls, bases)) and (inspect.isclass(cls) or not callable(cls)):
        raise _Problem(place, f"{name!r} is not {_described(bases)}.{_offer(bases)}")
    if inspect.isabstract(cls):
        raise _Problem(place, f"{name!r} is abstract and cannot be built.{_offer(bases)}")
    return cls


def _parser_of(cls: Any) -> ArgumentParser:
    parser = StrictParser()
    if inspect.isclass(cls):
        parser.add_class_arguments(cls, fail_untyped=False, sub_configs=True)
    else:
        parser.add_function_arguments(cls, fail_untyped=False, sub_configs=True)
    return parser


def _fits(hint: Any, value: Any) -> bool:
    probe = StrictParser()
    probe.add_argument("--value", type=hint)
    try:
        probe.parse_object({"value": value})
    except (ArgumentError, TypeError, ValueError):
        return False
    return True


def _wrong(place: Place, expected: str, value: Any, required: bool) -> _Problem:
    if value is not None:
        return _Problem(place, f"expected {expected}, got {value!r}")
    return _Problem(place, f"expected {expected}, got null{'' if required else '; leave the key out for its default'}")


def _unknown(place: Place, key: str, allowed: Any, hint: str = "") -> _Problem:
    text = str(unknown_key("", key, allowed)).removeprefix(": ")
    return _Problem(place, text + hint, at=key)


def _arms(hint: Any) -> list[Any]:
    """The alternatives of a type: the members of a union, or the type itself."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [arm for member in typing.get_args(hint) for arm in _arms(member)]
    return _arms(typing.get_args(hint)[0]) if typing.get_origin(hint) is typing.Annotated else [hint]


def _classes(arms: list[Any]) -> tuple[type, ...]:
    return tuple(arm for arm in arms if _is_base(arm))


@cache
def _is_base(hint: Any) -> bool:
    """Whether a value of this type is given as the name of a class."""
    if not inspect.isclass(hint) or dataclasses.is_dataclass(hint):
        return False
    try:
        StrictParser().add_subclass_arguments(hint, "value")
    except ValueError:
        return False
    return True


def _in_common(record: Any, given: Any) -> int:
    """How many of a record's fields are among the given keys."""
    return sum(field.name in given for field in dataclasses.fields(record))


def _origin(hint: Any) -> type:
    origin = typing.get_origin(hint) or hint
    return origin if inspect.isclass(origin) else object


def _lists(arms: list[Any]) -> list[Any]:
    """The types among some that a list may have."""
    return [arm for arm in arms if issubclass(list, _origin(arm)) and _origin(arm) is not object]


def _is_setting(action: Any) -> bool:
    return action.dest not in _NOT_SETTINGS and not action.dest.endswith(".help")


def _is_required(action: Any) -> bool:
    return hasattr(action, "_typehint") and action.default is Unset


def _described(hint: Any) -> str:
    """A type in words: `int or null`, `one of 'on', 'off'`, `a LightningModule`."""
    arms = [arm for member in (hint if isinstance(hint, tuple) else (hint,)) for arm in _arms(member)]
    choices = [choice for arm in arms if typing.get_origin(arm) is Literal for choice in typing.get_args(arm)]
    words = [f"one of {', '.join(map(repr, choices))}"] if choices else []
    words += [_name(arm) for arm in arms if typing.get_origin(arm) is not Literal]
    return " or ".join(dict.fromkeys(words))


def _name(arm: Any) -> str:
    if arm is type(None):
        return "null"
    if _is_base(arm):
        return f"a {arm.__name__}"
    if typing.get_origin(arm):
        return str(arm).replace("typing.", "").replace("collections.abc.Sequence", "list")
    return getattr(arm, "__name__", str(arm))


def _offer(bases: tuple[type, ...]) -> str:
    offered = names.choices(bases)
    return f" Allowed: {', '.join(offered)}." if offered else ""


def _dotted(place: Place) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "configuration"


def _shortened(reason: str) -> str:
    """The innermost line of a nested message, after its outermost."""
    lines = [line.strip().removeprefix("- ") for line in reason.splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else f"{lines[0]} {lines[-1]}"
