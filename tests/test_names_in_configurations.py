"""Names that stand in a configuration follow one rule (CONTRIBUTING, "Names")."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import lnlit
from lnlit import registry
from lnlit.builtins import BUILTINS
from lnlit.cli import names, stage_commands
from lnlit.renamed import CLASSES, KEYS

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "yaml").rglob("*.yaml"))
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
#: A boolean says what happens when it is true.
NEGATED = ("no_", "not_", "non_", "without_", "disable_", "dont_", "ignore_", "omit_")
#: Other spellings of units, and quantities that need one: seconds are `_s`, memory is `_gib`, `_mib` or `_bytes`.
UNITLESS = re.compile(r"(^|_)(sec|secs|seconds|ms|msec|minutes|hours|gb|mb|kb|percentage|timeout|memory|time_limit)$")
#: Kinds whose parts a configuration names by their classes, as Lightning's own.
BY_CLASS = {"method"}


class Owner(typing.NamedTuple):
    """Something with arguments that a configuration sets."""

    name: str
    keys: dict[str, Any]


def owners() -> Iterator[Owner]:
    waiting = [*registered(), *stages(), *steps(), *(getattr(lnlit, name) for name in lnlit._offered())]
    seen: set[Any] = set()
    while waiting:
        part = waiting.pop()
        if part in seen or not (inspect.isclass(part) or inspect.isfunction(part)) or inspect.isabstract(part):
            continue
        seen.add(part)
        keys = arguments(part)
        yield Owner(part.__name__, keys)
        waiting += [one for hint in keys.values() for one in leaves(hint) if dataclasses.is_dataclass(one)]


def registered() -> list[type]:
    kinds = [kind for kind in BUILTINS if kind != "checkpoint"]  # nobody writes their arguments
    return [registry.get(kind, name) for kind in kinds for name in BUILTINS[kind]]


def stages() -> list[Callable[..., Any]]:
    commands = [each for command in stage_commands.ALL for each in command.stages.values()]
    targets = [target.partition(":") for target, _ in commands]
    return [getattr(importlib.import_module(module), name) for module, _, name in targets]


def steps() -> list[type]:
    """The steps of curation and what runs them, which a configuration names by their classes."""
    from datatrove.pipeline.base import PipelineStep

    from lnlit.curation.executors import Executor

    return [part for base in (PipelineStep, Executor) for part in names._ours(base)]


def arguments(part: Any) -> dict[str, Any]:
    made_by = part.__init__ if inspect.isclass(part) else part
    try:  # a dataclass's annotations are of the modules of its bases
        hints = typing.get_type_hints(part if dataclasses.is_dataclass(part) else made_by)
    except NameError:  # tensors, whose type is not imported: no configuration sets these
        return {}
    unset = ("self", "args", "kwargs", "context")
    return {name: hints.get(name, Any) for name in inspect.signature(made_by).parameters if name not in unset}


def leaves(hint: Any) -> Iterator[Any]:
    """The types that a type is put together of."""
    yield hint
    if typing.get_origin(hint) is not Literal:
        for inner in typing.get_args(hint):
            yield from leaves(inner)


OWNERS = list(owners())


@pytest.mark.parametrize("kind", BUILTINS)
def test_a_part_is_called_in_lower_case_and_a_method_as_its_class(kind: str):
    for name, target in BUILTINS[kind].items():
        if kind in BY_CLASS:
            assert name == target.partition(":")[2]
        else:
            assert SNAKE.fullmatch(name), name


def test_keys_are_lower_case_with_units_and_without_negation():
    assert len(OWNERS) > 60
    for owner in OWNERS:
        for key, hint in owner.keys.items():
            place = f"{owner.name}.{key}"
            assert SNAKE.fullmatch(key.removesuffix("_")), place  # as in `from_`, which Python keeps for itself
            assert not UNITLESS.search(key), f"{place}: a quantity says its unit, as time_limit_s and memory_mib do"
            assert hint is not bool or not key.startswith(NEGATED), f"{place}: say what happens when it is true"


def test_words_for_settings_are_lower_case():
    for owner in OWNERS:
        for key, hint in owner.keys.items():
            words = [word for one in leaves(hint) if typing.get_origin(one) is Literal for word in typing.get_args(one)]
            for word in words:
                assert not isinstance(word, str) or SNAKE.fullmatch(word), f"{owner.name}.{key}: {word}"


def mappings(node: Any) -> Iterator[dict[Any, Any]]:
    if isinstance(node, dict):
        yield node
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings(item)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_name_parts_as_the_registry_does(path: Path):
    classes = {
        target.partition(":")[2]: name
        for kind, parts in BUILTINS.items()
        if kind not in BY_CLASS
        for name, target in parts.items()
    }
    methods = set(BUILTINS["method"])
    for node in mappings(yaml.safe_load(path.read_text(encoding="utf-8"))):
        name = node.get("class_path")
        assert name in methods or name not in classes, f"{name} is called {classes.get(name)}"
        assert name not in CLASSES, f"{name} is now called {CLASSES.get(name)}"


def test_an_old_key_is_told_of_where_the_new_one_is():
    keys = {owner.name: owner.keys for owner in OWNERS}
    for owner, renamed in KEYS.items():
        for old, new in renamed.items():
            assert old not in keys[owner], f"{owner}.{old} is there"
            hint: Any = None
            for name in re.split(r"[,: ]", new)[0].split("."):
                records = [one for one in leaves(hint) if dataclasses.is_dataclass(one)]
                there = keys[owner] if hint is None else arguments(records[0])
                assert name in there, f"{owner}.{old} is now called {new}: there is no {name}"
                hint = there[name]
    assert all(new in lnlit._offered() for new in CLASSES.values())
