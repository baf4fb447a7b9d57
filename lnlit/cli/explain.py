"""Explains in one line why a configuration was refused: the place, what is wrong, what is allowed.

jsonargparse reports a refused value through every layer of types that it tried. Instead, the user's tree is compared
with the parser, and the first key that does not fit is named, or all names that were renamed.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

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
    def __init__(self, place: Place, text: str, at: str | None = None) -> None:
        super().__init__(text)
        self.place, self.text = place, text
        #: The offending key below `place`, to point at its line rather than at its parent's.
        self.at = place if at is None else (*place, at)


@dataclasses.dataclass(frozen=True)
class _Reading:
    """The folders of the files being explained, to which file names in them are relative, and the former names that
    were found so far."""

    folders: tuple[Path, ...] = ()
    former: list[_Problem] = dataclasses.field(default_factory=list)


_reading: ContextVar[_Reading] = ContextVar("reading")


def explain(parser: ArgumentParser, written: Written, reason: str, stage: Any = None) -> str:
    """Explains in one line why `parser` refused `written`. `stage` is the function whose arguments are read, if the
    command is a stage. `reason` is jsonargparse's own message; it is shortened and returned if no fault is found here.
    """
    reading = _Reading(written.folders)
    token = _reading.set(reading)
    found: list[_Problem] = []
    try:
        tree = written.tree if stage is None else _without_former(stage, written.tree, ())
        _check_group(parser, tree, ())
    except _Problem as problem:
        found = [problem]
    finally:
        _reading.reset(token)
    # What else is wrong is told when the names are right, for a former name may be the cause of it.
    told = [f"{written.where(each.at)}{_dotted(each.place)}: {each.text}" for each in reading.former or found]
    return "; ".join(told) or _shortened(reason)


def _check_group(parser: ArgumentParser, given: Any, place: Place, prefix: str = "") -> None:
    """Checks the mapping `given` against the settings of `parser` whose names start with `prefix`."""
    if isinstance(given, str):
        file, given = _sub_file(given, place)
        former = _reading.get().former
        known = len(former)
        try:
            _check_group(parser, given, (), prefix)
        except _Problem as problem:
            raise _in_file(problem, file, place) from None
        finally:
            former[known:] = [_in_file(problem, file, place) for problem in former[known:]]
        return
    actions: dict[str, Any] = {action.dest: action for action in parser._actions if _is_setting(action)}
    within = [action for name, action in actions.items() if name.startswith(prefix)]
    if not isinstance(given, Mapping):
        raise _wrong(place, "a mapping", given, any(_is_required(action) for action in within))
    allowed = {action.dest.removeprefix(prefix).partition(".")[0] for action in within}
    unknown, checks = [], []
    given = _nested(given)
    for key, value in given.items():
        action = actions.get(f"{prefix}{key}")
        if str(key) not in allowed and str(key).endswith("+"):  # what it adds to must be a list
            name = str(key).removesuffix("+")
            action, value = actions.get(f"{prefix}{name}"), value if isinstance(value, list) else [value]
            key = name if _is_list_setting(action) else key
        if str(key) not in allowed:
            unknown.append(partial(_unknown, place, str(key), allowed))
        elif action is not None and hasattr(action, "_typehint"):
            checks.append(partial(_check_value, action._typehint, value, (*place, key), action.default))
        else:
            checks.append(partial(_check_group, parser, value, (*place, key), f"{prefix}{key}."))
    _check_all([*unknown, *checks])
    for action in filter(_is_required, within):
        key, _, deeper = action.dest.removeprefix(prefix).partition(".")
        if key not in given:
            classes = () if deeper else _classes(_arms(action._typehint))
            raise _Problem(place, f"the key {key!r} is missing.{_offer(classes)}")


def _check_all(checks: Iterable[Callable[[], None]]) -> None:
    """Runs all checks, so that all former names are found, and raises the first problem."""
    problems = []
    for check in checks:
        try:
            check()
        except _Problem as problem:
            problems.append(problem)
    if problems:
        raise problems[0]


def _check_value(hint: Any, value: Any, place: Place, default: Any = Unset) -> None:
    """Check `value` against the type `hint`; a `default` of `Unset` means that there is none."""
    arms = _arms(hint)
    classes = _classes(arms)
    records = [arm for arm in arms if dataclasses.is_dataclass(arm)]
    mappings = [arm for arm in arms if _origin(arm) is not None and issubclass(_origin(arm), Mapping)]
    lists = [arm for arm in arms if _origin(arm) is not None and _is_list(_origin(arm))]
    is_class_name = isinstance(value, str) and str not in arms and bool(classes)
    if is_class_name or (isinstance(value, Mapping) and classes and ("class_path" in value or not mappings)):
        _check_class(classes, value, place, default)
    elif records and (isinstance(value, Mapping) or (_is_file_name(value, arms) and not _fits(hint, value))):
        record = max(records, key=lambda record: _in_common(record, value))
        _check_group(_parser_of(record), _without_former(record, value, place), place)
    elif isinstance(value, Mapping) and mappings and len(typing.get_args(mappings[0])) == 2:
        kind = typing.get_args(mappings[0])[1]
        _check_all(partial(_check_value, kind, item, (*place, key)) for key, item in value.items())
    elif isinstance(value, list) and lists and typing.get_args(lists[0]):
        kind = typing.get_args(lists[0])[0]
        _check_all(partial(_check_value, kind, item, (*place, index)) for index, item in enumerate(value))
    elif not _fits(hint, value):
        problem = _wrong(place, _described(hint), value, default is Unset)
        if lists and isinstance(value, str | int | float):
            problem = _Problem(place, f"{problem.text}. Write a list as '[a, b]'.")
        raise problem


def _check_class(bases: tuple[type, ...], value: Any, place: Place, default: Any) -> None:
    """Checks `{class_path, init_args}`, or a bare class name, if a subclass of one of `bases` is expected."""
    spec = {"class_path": value} if isinstance(value, str) else value
    for key in spec:
        if key not in _SPEC_KEYS:
            hint = " A class's own arguments belong under init_args." if "class_path" in spec else ""
            _unknown(place, key, _SPEC_KEYS, hint)
    path = spec.get("class_path", default.get("class_path") if isinstance(default, Mapping) else Unset)
    if path is Unset:
        raise _Problem(place, f"the key 'class_path' is missing; it names {_described(bases)}.{_offer(bases)}")
    cls = _class_of(bases, path, (*place, "class_path") if "class_path" in spec and value is spec else place)
    place = (*place, "init_args")
    _check_group(_parser_of(cls), _without_former(cls, spec.get("init_args", {}), place), place)


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


def _is_list_setting(action: Any) -> bool:
    arms = _arms(action._typehint) if hasattr(action, "_typehint") else []
    return any(_origin(arm) is not None and _is_list(_origin(arm)) for arm in arms)


def _without_former(owner: Any, given: Any, place: Place) -> Any:
    """The settings of a class or stage without the keys that have another name now, which are noted."""
    if not isinstance(given, Mapping):
        return given
    # A subclass may use a former name for a setting of its own.
    unknown = [key for key in given if key not in inspect.signature(owner).parameters]
    renamed: dict[str, str] = {}
    for kind in getattr(owner, "__mro__", (owner,)):
        renamed |= keys_now_called(kind.__name__, unknown)
    if renamed:
        former: dict[str, list[str]] = {}
        for key, new in renamed.items():
            former.setdefault(new, []).append(key)
        told = (f"{', '.join(keys)} {'is' if len(keys) == 1 else 'are'} now called {n}" for n, keys in former.items())
        _reading.get().former.append(_Problem(place, "; ".join(told), at=next(iter(renamed))))
    return {key: value for key, value in given.items() if key not in renamed}


def _class_of(bases: tuple[type, ...], name: Any, place: Place) -> Any:
    if not isinstance(name, str):
        raise _wrong(place, "the name of a class", name, required=True)
    if name in CLASSES and (new := now_called(name, names.choices(bases))):
        _reading.get().former.append(_Problem(place, f"{name} is now called {new}"))
        name = new

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


def _sub_file(name: str, place: Place) -> tuple[Path, Any]:
    """(path, content) of a group that is given as the name of its own YAML file."""
    places = [folder / name for folder in (*_reading.get().folders, Path())]
    file = next((path for path in places if path.is_file()), Path(name))
    try:
        return file, own.anchored(yaml.safe_load(file.read_text(encoding="utf-8")), file.parent)
    except (OSError, yaml.YAMLError):
        raise _Problem(place, f"expected a mapping or the name of a YAML file, got {name!r}") from None


def _in_file(problem: _Problem, file: Path, place: Place) -> _Problem:
    """A problem of a file that stands for the group at `place`."""
    inner = f"{_dotted(problem.place)}: " if problem.place else ""
    return _Problem(place, f"{file}: {inner}{problem.text}")


def _wrong(place: Place, expected: str, value: Any, required: bool) -> _Problem:
    if value is not None:
        return _Problem(place, f"expected {expected}, got {value!r}")
    return _Problem(place, f"expected {expected}, got null{'' if required else '; leave the key out for its default'}")


def _unknown(place: Place, key: str, allowed: Any, hint: str = "") -> NoReturn:
    text = str(unknown_key("", key, allowed)).removeprefix(": ")
    raise _Problem(place, text + hint, at=key)


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


def _origin(hint: Any) -> Any:
    origin = typing.get_origin(hint) or hint
    return origin if inspect.isclass(origin) else None


def _is_list(origin: type) -> bool:
    return issubclass(list, origin) and origin is not object


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
