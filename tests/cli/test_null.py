"""null stands for None alone: wherever a signature does not admit None, it is refused in one line that says what to do.

What there is to try is read off the signatures: of every stage, and of every class that a configuration may name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lnlit import registry
from lnlit.builtins import INTERFACES
from lnlit.cli import names, stage_commands, train
from lnlit.cli.explain import explain
from lnlit.cli.parser import StrictParser
from lnlit.cli.written import Written
from lnlit.errors import UserError

STAGES = [(command, stage) for command in stage_commands.ALL for stage in command.stages]
#: Kinds whose parts a specification or a setting names by a text, rather than a configuration by its class.
_NOT_BUILT = {"attention", "ffn", "attention_kernel", "checkpoint", "meter"}
_PLAIN = {str: "text", int: 1, float: 0.5, bool: True}
_EMPTY = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Key:
    """A parameter, or a field of a record among the parameters."""

    owner: Callable[..., Any]
    place: tuple[str, ...]
    hint: Any
    default: Any

    def admits_none(self) -> bool:
        if isinstance(self.hint, str):  # a name that only type checkers import; aliases of ours hold no None
            arms = [arm.strip() for arm in re.sub(r"\[.*\]", "", self.hint).split("|")]
            return self.default is None or bool({"None", "Any"} & set(arms))
        return self.default is None or bool({types.NoneType, Any, object, _EMPTY} & set(arms_of(self.hint)))


def arms_of(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [arm for member in typing.get_args(hint) for arm in arms_of(member)]
    return arms_of(typing.get_args(hint)[0]) if typing.get_origin(hint) is typing.Annotated else [hint]


def records_of(hint: Any) -> list[Any]:
    return [arm for arm in arms_of(hint) if dataclasses.is_dataclass(arm)]


def keys_of(what: Callable[..., Any], place: tuple[str, ...] = (), given: Any = None) -> Iterator[Key]:
    """`given`: a record that a signature has as its default, whose fields are then theirs."""
    for name, parameter in inspect.signature(what).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        hint = parameter.annotation
        if isinstance(hint, str):
            maker = what.__init__ if inspect.isclass(what) else what
            space = vars(importlib.import_module(what.__module__)) | getattr(maker, "__globals__", {})
            with contextlib.suppress(NameError):
                hint = eval(hint, dict(space))
        default = getattr(given, name, parameter.default)
        yield Key(what, (*place, name), hint, default)
        for record in records_of(hint):
            yield from keys_of(record, (*place, name), default if isinstance(default, record) else None)


def filled(what: Callable[..., Any]) -> dict[str, Any]:
    """Something for all that has no default."""
    return {key.place[0]: value_for(key.hint) for key in keys_of(what) if len(key.place) == 1 and key.default is _EMPTY}


def value_for(annotation: Any) -> Any:
    hint: Any = arms_of(annotation)[0]
    origin: Any = typing.get_origin(hint) or hint
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is Literal:
        return typing.get_args(hint)[0]
    if records := records_of(hint):
        return filled(records[0])
    if issubclass(origin, Mapping):
        return {}
    if issubclass(origin, Sequence):
        return [value_for(typing.get_args(hint)[0])]
    classes = {name: names.imported(names.resolve(hint, name)) for name in names.choices(hint)}
    name = min(classes, key=lambda name: sum(map(is_needed_part, keys_of(classes[name]))))
    return {"class_path": name, "init_args": filled(classes[name])}


def is_needed_part(key: Key) -> bool:
    return key.default is _EMPTY and arms_of(key.hint)[0] not in _PLAIN


def with_null(tree: dict[str, Any], key: Key) -> dict[str, Any]:
    """The tree with null at a key's place; what else its record needs is filled in."""
    tree = node = dict(tree)
    *above, last = key.place
    for part in above:
        node[part] = node = dict(node.get(part) or {})
    if above:
        node.clear()
        node.update(filled(key.owner))
    node[last] = None
    return tree


def check(what: Callable[..., Any], refusal: Callable[[dict[str, Any]], str | None], prefix: str = "") -> int:
    """All keys of a signature: `refusal(tree)` says why a configuration is refused. Returns how many were tried."""
    assert refusal(filled(what)) is None
    wrong, tried = [], 0
    for key in keys_of(what):
        said = refusal(with_null(filled(what), key))
        if key.admits_none():
            if len(key.place) == 1 and said is not None:
                wrong.append(f"{key}: is refused: {said}")
            continue
        tried += 1
        place = ".".join((*([prefix] if prefix else []), *key.place))
        way_out = "" if key.default is _EMPTY else "; leave the key out for its default"
        if not re.fullmatch(rf"(.*: )?{re.escape(place)}: expected .+, got null{way_out}", said or ""):
            wrong.append(f"{place}: {said}")
    assert not wrong, "\n".join(wrong)
    return tried


@pytest.mark.parametrize(("command", "stage"), STAGES, ids=[stage for _, stage in STAGES])
def test_of_a_stage(command, stage: str, tmp_path: Path):
    def refusal(tree: dict[str, Any]) -> str | None:
        (tmp_path / "stage.yaml").write_text(yaml.safe_dump(tree))
        try:
            command.parsed(stage, ["--config", str(tmp_path / "stage.yaml")])
        except UserError as error:
            return str(error)
        return None

    module, _, function = command.stages[stage][0].partition(":")
    assert check(getattr(importlib.import_module(module), function), refusal)


def named_classes() -> Iterator[tuple[type, str]]:
    """(what is asked for, a name that fits) of every class of ours that a configuration may name."""
    for kind, target in INTERFACES.items():
        if kind not in _NOT_BUILT:
            module, _, base = target.partition(":")
            for entry in registry.entries(kind):
                if entry.distribution == "lnlit":
                    yield getattr(importlib.import_module(module), base), entry.name
    for base in (LightningDataModule, Callback):
        ours = (name for name in names.choices(base) if names.resolve(base, name).startswith("lnlit."))
        yield from ((base, name) for name in ours)


@pytest.mark.parametrize(("base", "name"), [pytest.param(*found, id=found[1]) for found in named_classes()])
def test_of_a_class(base: type, name: str):
    parser = StrictParser()
    parser.add_subclass_arguments(base, "part", required=True)

    def refusal(init_args: dict[str, Any]) -> str | None:
        written = Written([])
        written.tree = {"part": {"class_path": name, "init_args": init_args}}
        try:
            parser.parse_object(written.tree)
        except ArgumentError as error:
            return explain(parser, written, str(error))
        return None

    check(names.imported(names.resolve(base, name)), refusal, "part.init_args")


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_of_the_trainer(command: str):
    whole = {"model": value_for(LightningModule), "data": value_for(LightningDataModule)}
    arguments = [f"--{key}={value}" for key, value in whole.items()]
    with pytest.raises(train._Read) as read:
        train._Reader(command, arguments, Written(arguments))
    parser = read.value.args[0]._parser(command)

    def refusal(flags: dict[str, Any]) -> str | None:
        written = Written([])
        written.tree = {**whole, "trainer": flags}
        try:
            parser.parse_object(written.tree)
        except ArgumentError as error:
            return explain(parser, written, str(error))
        return None

    assert check(Trainer, refusal, "trainer")


IN_A_COMMAND = {
    "  max_steps: 2": ("  profiler: simple\n  max_steps: null", "trainer.max_steps: expected int"),
    "trainer:": ("seed_everything: null\ntrainer:", "seed_everything: expected bool or int"),
    "    optimizer:": ("    runtime: null\n    optimizer:", "model.init_args.runtime: expected a mapping"),
    "learning_rate: 0.001": ("learning_rate: null", "model.init_args.optimizer.learning_rate: expected float"),
    "class_path: SFT": ("class_path: null", "model.class_path: expected the name of a class"),
    "paths: {rows}": ("paths: null", "data.init_args.train.init_args.paths: expected str or list[str]"),
    "micro_batch_size: 2": ("micro_batch_size: 2\n    seed: null", "data.init_args.seed: expected int"),
}


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize(("old", "new", "said"), [(old, *new) for old, new in IN_A_COMMAND.items()])
def test_in_a_file_of_a_command(command: str, old: str, new: str, said: str, lnlit, config, rows_file):
    code, out, err = lnlit(command, "--config", config((old.format(rows=rows_file), new)))
    assert (code, out, err.count("\n")) == (2, "", 1) and f"{said}, got null" in err, err


@pytest.mark.parametrize("key", ["base", "arms", "seeds", "metrics", "out"])
def test_of_an_ablation(key: str, lnlit, tmp_path: Path):
    given = {"base": "run.yaml", "arms": {"a": {}, "b": {}}, "seeds": [0], "metrics": ["train/loss"], "out": "new"}
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({**given, key: None}))
    code, _, err = lnlit("ablate", "ablation.yaml", "--dry-run")
    assert (code, err.count("\n")) == (2, 1) and f"ablation.yaml: {key}: expected " in err and ", got null." in err, err


def test_of_all_settings_of_the_trainer_at_once(lnlit, config):
    text = config().read_text()
    config().write_text("trainer: null\n" + text[text.index("model:") :])
    for command in ("fit", "validate"):
        code, _, err = lnlit(command, "--config", "run.yaml")
        assert (
            code == 2 and "run.yaml:1: trainer: expected a mapping, got null; leave the key out for its default" in err
        )


def test_a_complete_configuration_with_all_its_nulls_is_read_again(lnlit, config, tmp_path: Path):
    code, complete, err = lnlit("fit", "--config", config(), "--print_config")
    assert code == 0 and complete.count("null") > 10, err
    (tmp_path / "complete.yaml").write_text(complete)
    assert lnlit("fit", "--config", "complete.yaml", "--print_config")[:2] == (0, complete)
