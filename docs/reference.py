"""The pages of the site that nobody writes: every argument as signatures and docstrings say it, results, architecture.

MkDocs calls `on_files` when it builds the site (mkdocs.yml). Parts come from the registry and are read by the parser
of the command line, so a page says what `lnlit fit --model.help NAME` says. Of plugins, those of this repository are
listed, whether installed or not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import inspect
import io
import json
import os
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Union
from unittest import mock

from datatrove.pipeline.base import PipelineStep
from jsonargparse import Unset
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from mkdocs.structure.files import File

from lnlit import registry
from lnlit.builtins import INTERFACES
from lnlit.cli import names
from lnlit.cli.main import COMMANDS, main
from lnlit.cli.parser import StrictParser
from lnlit.cli.stage_commands import ALL
from lnlit.curation.executors import Executor
from lnlit.errors import UserError

ROOT = Path(__file__).parent.parent
#: Page -> (title, what it says first, registry kinds or base classes).
PARTS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "methods": ("Training methods", "`model: {class_path: NAME, init_args: {...}}`", ("method",)),
    "data": ("Data modules", "`data: {class_path: NAME, init_args: {...}}`", (LightningDataModule,)),
    "sources": ("Sources of rows", "`source: {class_path: NAME, init_args: {...}}`", ("source",)),
    "rewards": ("Rewards", "`rewards: [{reward: {class_path: NAME, init_args: {...}}}]`", ("reward",)),
    "algorithms": ("Algorithms", "`class_path: Policy`, `algorithm: {class_path: NAME, ...}`", ("algorithm",)),
    "engines": ("Engines and orders of prompts", "`engine:` and `prompt_order:`", ("rollout", "prompt_order")),
    "search": ("Solvers and meters", "`solver:` of `solve`, `engine:` of `measure` and `verify`", ("solver", "meter")),
    "variants": (
        "Variants of layers, and kernels",
        "`attention` and `ffn` of a `BlockSpec`; `runtime: {attention_kernel: NAME}`",
        ("attention", "ffn", "attention_kernel"),
    ),
    "checkpoints": ("Checkpoint formats", "What `lnlit import` reads and `lnlit export` writes.", ("checkpoint",)),
    "tasks": ("Benchmarks", "`lnlit eval MODEL --tasks NAME`", ("task",)),
    "callbacks": ("Callbacks", "`trainer: {callbacks: [{class_path: NAME, init_args: {...}}]}`", (Callback,)),
    "curation": ("Steps of curation", "`steps:` and `executor:` of `lnlit curate`", (PipelineStep, Executor)),
}
#: What a constructor gets from the decoder that builds it, and no configuration says.
GIVEN = {"context"}


def on_files(files: Any, config: Any) -> Any:
    """Adds the made pages to those that are written."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """All made pages, by their path in the site."""
    settings: dict[str, type] = {}
    made = {f"reference/{page}.md": _page(*about, settings) for page, about in PARTS.items()}
    made["reference/commands.md"] = _commands(settings)
    made["reference/settings.md"] = _settings(settings)
    made["results.md"] = (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    # Links lead to files of the repository, which the site has not.
    architecture = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    made["architecture.md"] = re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]+\)", r"\1", architecture)
    return made


def parts_of(kind: Any) -> Iterator[tuple[str, Any]]:
    """(name in configurations, class) of a registry kind, or of a base class whose subclasses YAML may name. A part
    that cannot be imported here comes with the reason in place of its class."""
    if isinstance(kind, str):
        for entry in (*(entry for entry in registry.entries(kind) if entry.distribution == "lnlit"), *_plugins(kind)):
            try:
                yield entry.name, entry.load()
            except UserError as error:
                yield entry.name, str(error)
        return
    for name in names.choices(kind):
        path = names.resolve(kind, name)
        if not path.startswith("lnlit."):  # a class that this process has made, as tests do
            continue
        found = names.imported(path)
        if found.__module__.startswith("lnlit.") and "._" not in found.__module__:
            yield name, found


def _plugins(kind: str) -> Iterator[registry.Entry]:
    """The parts of the plugins in this repository, which can be imported from here on."""
    for file in sorted((ROOT / "plugins").glob("*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        offered = project.get("entry-points", {}).get(f"lnlit.{kind}", {})
        if offered and str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
        for name, target in offered.items():
            yield registry.Entry(kind, name, target, project["name"], project["version"])


def arguments(owner: Any) -> list[tuple[str, Any, Any, str]]:
    """(dotted key, type, default, what it does) of each argument of a class or a function."""
    parser = StrictParser()
    add = parser.add_class_arguments if inspect.isclass(owner) else parser.add_function_arguments
    given: set[str | int] = {name for name in inspect.signature(owner).parameters if name in GIVEN}
    add(owner, fail_untyped=False, sub_configs=True, skip=given)
    actions: list[Any] = [action for action in parser._actions if hasattr(action, "_typehint")]
    typed = [action for action in actions if not action.dest.endswith(".help")]
    return [(action.dest, action._typehint, action.default, str(action.help or "")) for action in typed]


def _page(title: str, first: str, kinds: Sequence[Any], settings: dict[str, type]) -> str:
    lines = [f"# {title}", "", f"{first} Made from signatures and docstrings when this site was built.", ""]
    for kind in kinds:
        if len(kinds) > 1:
            lines += [f"## {_title(kind)}", ""]
        for name, part in parts_of(kind):
            lines += [f"{'###' if len(kinds) > 1 else '##'} {name}", ""]
            lines += [_cell(part), ""] if isinstance(part, str) else [*_entry(part, settings), ""]
    return "\n".join(lines)


def _title(kind: Any) -> str:
    return f"`{kind}`: {INTERFACES[kind].rpartition(':')[2]}" if isinstance(kind, str) else kind.__name__


def _entry(part: Any, settings: dict[str, type]) -> list[str]:
    said = (inspect.getdoc(part) or "").partition("Args:")[0].strip()
    package = part.__module__.partition(".")[0]
    needs = "" if package == "lnlit" else f", of the plugin {package.replace('_', '-')}"
    lines = [f"`{part.__module__}.{part.__qualname__}`{needs}", "", *_escaped(said).splitlines(), ""]
    rows = arguments(part) if callable(part) and not _takes_nothing(part) else []
    return [*lines, *_table(rows, settings)] if rows else [*lines, "No arguments."]


def _takes_nothing(part: Any) -> bool:
    return inspect.isclass(part) and part.__init__ is object.__init__


def _table(rows: list[tuple[str, Any, Any, str]], settings: dict[str, type]) -> list[str]:
    lines = ["| argument | type | default | |", "|---|---|---|---|"]
    for key, hint, default, text in rows:
        lines.append(f"| `{key}` | {_type(hint, settings)} | {_default(default)} | {_cell(text)} |")
    return lines


def _type(hint: Any, settings: dict[str, type]) -> str:
    """A type in a cell of a table, with links to records of settings, which are noted."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one, settings) for one in inner)
    if origin is Literal:
        return " or ".join(_code(json.dumps(value)) for value in inner)
    if origin is typing.Annotated:
        return _type(inner[0], settings)
    if hint is type(None):
        return "null"
    if origin is not None and inspect.isclass(origin):
        words = [_type(one, settings) for one in inner if one is not Ellipsis]
        if issubclass(origin, Mapping):
            return f"mapping of {words[-1]}" if words else "mapping"
        if issubclass(origin, tuple) and Ellipsis not in inner:
            return f"[{', '.join(words)}]"
        return f"list of {words[0]}" if words else "list"
    if dataclasses.is_dataclass(hint) and inspect.isclass(hint):
        settings.setdefault(hint.__name__, hint)
        return f"[{hint.__name__}](settings.md#{hint.__name__.lower()})"
    return _code(getattr(hint, "__name__", str(hint)))


def _default(value: Any) -> str:
    if value is Unset:
        return "**needed**"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return _code(json.dumps(value, default=str, ensure_ascii=False))


def _settings(settings: dict[str, type]) -> str:
    """Records that stand in other arguments, and those that stand in these."""
    made: dict[str, list[str]] = {}
    while missing := [name for name in settings if name not in made]:
        made[missing[0]] = [f"## {missing[0]}", "", *_entry(settings[missing[0]], settings), ""]
    lines = ["# Records of settings", "", "Mappings that other arguments take: `lora: {rank: 16}`.", ""]
    return "\n".join([*lines, *(line for name in sorted(made) for line in made[name])])


def _commands(settings: dict[str, type]) -> str:
    lines = ["# Commands", "", "Each is a function of `lnlit` too, with the same arguments.", ""]
    staged = {command.name: command for command in ALL}
    for name, (_, what) in COMMANDS.items():
        lines += [f"## lnlit {name}", "", f"{_escaped(what[0].upper() + what[1:])}.", ""]
        if name not in staged:
            lines += ["```text", _help(name), "```", ""]
            continue
        command = staged[name]
        for stage in command.stages:
            words = " ".join(dict.fromkeys(("lnlit", name, stage)))
            lines += [f"### `{words}`", "", *_entry(command._function(stage), settings), ""]
    return "\n".join(lines)


def _help(command: str) -> str:
    wide = mock.patch.dict(os.environ, COLUMNS="100")  # argparse breaks lines for the terminal
    with wide, contextlib.redirect_stdout(io.StringIO()) as said:
        main([command, "--help"])
    return said.getvalue().strip()


def _code(text: str) -> str:
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "&#124;")


def _escaped(text: str) -> str:
    """Text of a docstring as Markdown: what is no code span holds no markup."""
    spans = re.split(r"(`[^`]*`)", text)
    plain = (re.sub(r"([*_\[\]])", r"\\\1", html.escape(span, quote=False)) for span in spans[::2])
    return "".join(text for pair in zip_longest(plain, spans[1::2], fillvalue="") for text in pair)
