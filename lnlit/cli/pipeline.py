"""A folder of numbered YAML files as stages, and what each of them reads and writes, known before any of them runs.

What a stage reads is found in its file, not in its code: every text in it, and in files that it includes, that names
something on disk. What it writes is found at the keys `WRITES`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lnlit import own
from lnlit.cli.recipes import pipelines
from lnlit.cli.stage_commands import of_stage
from lnlit.cli.written import Place, read_yaml
from lnlit.errors import UserError, did_you_mean
from lnlit.files import expanded

#: Keys of what a stage makes; `cache`, `save_dir` and `weights_folder` are its scratch.
RESULTS, ROOT = "out", "default_root_dir"
WRITES = (RESULTS, ROOT, "cache", "save_dir", "weights_folder")
#: The key of a class, which may lie in a file of the user's own.
CODE = "class_path"
#: The default output folder of a fit.
DEFAULT_ROOT = "runs"
#: The names that a fit writes in its `default_root_dir`, which may hold other things too.
OF_A_RUN = ("checkpoints", "logs", "rollouts", "rollouts.html")
#: Keys that name what a stage reads.
READS = {
    "model", "models", "tokenizer", "teacher", "reference", "library", "scores", "costs", "solution", "problem",
    "measured", "corrected_by", "plan", "paths", "path", "run", "adapter",
}  # fmt: skip
_SUFFIXES = (".json", ".jsonl", ".gz", ".zst", ".yaml", ".yml", ".safetensors", ".gguf", ".ckpt", ".parquet", ".txt")
_NUMBER = re.compile(r"(\d+)([a-z]?)_")


@dataclass(frozen=True)
class Leaf:
    """A text in a recipe: the key of the text or of its list, its place, and the folder of its file."""

    key: str
    place: Place
    text: str
    folder: Path


@dataclass(frozen=True)
class Stage:
    """One file of a pipeline."""

    file: Path

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def place(self) -> tuple[int, str] | None:
        """(3, "b") for `3b_realize.yaml`, or None for a file without a number."""
        match = _NUMBER.match(self.file.name)
        return None if match is None else (int(match[1]), match[2])

    @property
    def number(self) -> str:
        """The number with its letter, such as "3b"."""
        return "".join(map(str, self.place or ()))

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The content of the file; {} if it is not a mapping. Raises `UserError` if it is not YAML."""
        return mapping_of(self.file)

    @property
    def kind(self) -> str | None:
        """The stage of a command such as `lnlit search`, or None for a fit."""
        stage = self.recipe.get("stage")
        return None if stage is None else str(stage)

    @property
    def command(self) -> list[str]:
        """The words after `lnlit`, before the options."""
        if self.kind is None:
            return ["fit"]
        command = of_stage(self.kind)
        return [command.name] if self.kind == command.default else [command.name, self.kind]

    @property
    def options(self) -> list[str]:
        return ["--config", str(self.file), *(["--ckpt_path", "last"] if self.kind is None else [])]

    @cached_property
    def leaves(self) -> list[Leaf]:
        """Every text in the file and in the files that it includes."""
        return list(_leaves(self.recipe, "", (), self.file.parent, {self.file.resolve()}))

    @cached_property
    def included(self) -> list[Path]:
        """The YAML files that this stage's configuration includes, each for a part of it."""
        return [file for leaf in self.leaves if (file := _included(leaf))]

    @cached_property
    def outs(self) -> list[str]:
        """Everything that the stage calls `out`, which exists when it is done."""
        return [leaf.text for leaf in self.leaves if leaf.key == RESULTS]

    @cached_property
    def root(self) -> str | None:
        """The folder where a fit keeps its checkpoints and logs, or None for other stages."""
        if self.kind is not None:
            return None
        given = [leaf.text for leaf in self.leaves if ".".join(map(str, leaf.place)) == f"trainer.{ROOT}"]
        return given[-1] if given else DEFAULT_ROOT

    @cached_property
    def devices(self) -> tuple[int | None, int] | None:
        """(devices on each node, nodes) that the trainer of a fit asks for, None for all devices of a node. None for
        other stages."""
        if self.kind is not None:
            return None
        trainer = self.recipe.get("trainer")
        if isinstance(trainer, str):
            trainer = mapping_of(self.file.parent / trainer)
        settings = trainer if isinstance(trainer, dict) else {}
        given, nodes = settings.get("devices"), settings.get("num_nodes", 1)
        devices = len(given) if isinstance(given, list) else int(str(given)) if str(given).isdigit() else None
        return devices, nodes if isinstance(nodes, int) else 1

    @cached_property
    def beside(self) -> list[str]:
        """What the stage writes beside its results, and they are read with."""
        written: list[str] = []
        if self.kind in ("solve", "refine"):
            from lnlit.stages.solve import problem_path

            written += [str(problem_path(Path(out))) for out in self.outs]
        if self.kind == "refine":
            written += [str(Path(out).with_suffix(".png")) for out in self.outs]
        return written

    @cached_property
    def writes(self) -> list[str]:
        """Every path that the stage may change."""
        written = [leaf.text for leaf in self.leaves if leaf.key in WRITES] + self.beside
        if self.kind == "page":
            written += [str(Path(leaf.text) / "rollouts.html") for leaf in self.leaves if leaf.key == "run"]
        return list(dict.fromkeys([*written, *([self.root] if self.root else [])]))

    @cached_property
    def makes(self) -> list[str]:
        """Every path below which others find what the stage wrote. In the default folder that all fits and loggers
        share, that is only what a fit of its own writes there."""
        own = [f"{DEFAULT_ROOT}/{name}" for name in OF_A_RUN] if self.root == DEFAULT_ROOT else []
        return [path for path in self.writes if path != DEFAULT_ROOT] + own

    @cached_property
    def named(self) -> list[Leaf]:
        """The texts that may name something to read."""
        texts = [leaf for leaf in self.leaves if leaf.key not in WRITES and _is_plain(leaf.text)]
        return [leaf for leaf in texts if leaf.key in READS or "/" in leaf.text or "." in leaf.text]

    def reads(self) -> dict[str, list[Path]]:
        """What exists of what the stage names: text -> paths."""
        return {leaf.text: paths for leaf in self.named if (paths := _found(leaf))}

    def depends_on(self, other: Stage) -> bool:
        """True if this stage names anything that `other` writes."""
        return any(
            _meet(_absolute(leaf.text), _absolute(path)) or _matches(path, leaf.text)
            for leaf in self.named
            for path in other.makes
        )

    def unwritten(self, before: Sequence[Stage], after: Sequence[Stage]) -> Iterator[tuple[Leaf, str]]:
        """(text, what is wrong) of each path that neither exists nor is written by a stage `before`."""
        made = {path: stage for stage in before for path in stage.makes}
        late = {path: stage for stage in after for path in stage.makes}
        roots = {Path(path).parts[0] for path in (*made, *late, *self.writes) if Path(path).parts}
        for leaf in self.leaves:
            strict = self.kind is not None and len([part for part in leaf.place if isinstance(part, str)]) == 1
            if leaf.key in WRITES or not _is_path(leaf, strict, roots) or _found(leaf):
                continue
            if any(_meet(_absolute(leaf.text), _absolute(path)) or _matches(path, leaf.text) for path in made):
                continue
            later = next((stage for path, stage in late.items() if _meet(_absolute(leaf.text), _absolute(path))), None)
            if later is not None:
                yield leaf, f"{leaf.text!r} is not there; {later.file.name} writes it, which comes later"
            else:
                hint = did_you_mean(leaf.text, made)
                yield leaf, f"there is no {leaf.text!r}, and no stage before writes it.{hint}"


def stages_of(folder: Path) -> list[Stage]:
    """The stages of a folder, `1_name.yaml` before `1b_name.yaml` before `2_name.yaml`. `UserError` when there are none
    or two share a number."""
    if not folder.is_dir():
        recipe = folder.name if folder.name in pipelines() else "NAME"
        raise UserError(
            f"{folder}: there is no such folder; give one that holds 1_name.yaml, 2_name.yaml, ... `lnlit recipes copy "
            f"{recipe} DIR` writes one, and `lnlit recipes` lists them."
        )
    stages: dict[tuple[int, str], Stage] = {}
    for stage in map(Stage, sorted(folder.glob("*.yaml"))):
        if (place := stage.place) is None:
            continue
        if (other := stages.setdefault(place, stage)) is not stage:
            raise UserError(f"{folder}: {other.file.name} and {stage.file.name} have the same number")
    for file in sorted(folder.glob("*.yml")):
        if Stage(file).place is not None:
            raise UserError(f"{file}: a stage's file ends with .yaml. Rename it, so that it is run.")
    if not stages:
        inside = sorted({file.parent for file in folder.glob("*/*.yaml") if Stage(file).place is not None})
        hint = f". Did you mean {inside[0]}?" if inside else ""
        raise UserError(f"{folder}: no file is named like 1_name.yaml, so there is nothing to run{hint}")
    return [stages[place] for place in sorted(stages)]


def position(stages: Sequence[Stage], wanted: str) -> int:
    """The position of a stage given by its number, its name or its file. Raises `UserError` if there is none."""
    for index, stage in enumerate(stages):
        if wanted and wanted in (stage.number, stage.name, stage.file.name, str(stage.file)):
            return index
    names = [stage.name for stage in stages]
    raise UserError(f"no stage {wanted!r}.{did_you_mean(wanted, names)} There are: {', '.join(names)}.")


def check_roots(stages: Sequence[Stage]) -> None:
    """Raises `UserError` if two fits train in one folder: the second would resume from the first one's checkpoint."""
    seen: dict[Path, Stage] = {}
    for stage in stages:
        if stage.root is not None:
            first = seen.setdefault(_absolute(stage.root), stage)
            if first is not stage:
                raise UserError(
                    f"{stage.file}: trainer.default_root_dir {stage.root} is that of {first.file.name} too, whose "
                    "checkpoint it would go on from. Give each a folder of its own."
                )


def mapping_of(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; {} if it holds anything else."""
    tree, _ = read_yaml(file)
    return tree if isinstance(tree, dict) else {}


def _leaves(node: Any, key: str, place: Place, folder: Path, seen: set[Path]) -> Iterator[Leaf]:
    if isinstance(node, str):
        if part := own.split(node):
            yield Leaf(CODE, place, str(part[0]), folder)
        if part or key == CODE:
            return
        leaf = Leaf(key, place, node, folder)
        yield leaf
        if (file := _included(leaf)) and file.resolve() not in seen:
            yield from _leaves(mapping_of(file), key, place, file.parent, {*seen, file.resolve()})
    for name, value in node.items() if isinstance(node, dict) else ():
        last = str(name).rpartition(".")[2].removesuffix("+")  # `a.b` stands for `a: {b: ...}`, `a+` adds to `a`
        yield from _leaves(value, last, (*place, name), folder, seen)
    for index, value in enumerate(node) if isinstance(node, list) else ():
        yield from _leaves(value, key, (*place, index), folder, seen)


def _included(leaf: Leaf) -> Path | None:
    """The YAML file that stands for a part of a configuration. Its name is relative to the configuration's folder."""
    if leaf.key in WRITES or not _is_plain(leaf.text) or not leaf.text.endswith((".yaml", ".yml")):
        return None
    file = leaf.folder / leaf.text
    return file if file.is_file() else None


def _found(leaf: Leaf) -> list[Path]:
    """The paths on disk that a text names, relative to the current folder or to its file's; all matches of a
    pattern."""
    if leaf.key == CODE:
        return own.files((leaf.folder / leaf.text).absolute())
    if not _is_plain(leaf.text):
        return []
    named = expanded(leaf.text)
    if here := [path for path in (named, leaf.folder / named) if path.exists()]:
        return here[:1]
    if not glob.has_magic(leaf.text):
        return []
    return sorted(map(Path, glob.glob(str(named), recursive=True)))  # noqa: PTH207  that of a Path takes no absolute ones


def _is_plain(text: str) -> bool:
    """True if a text may name a path at all."""
    return 0 < len(text) < 1000 and "\n" not in text and "\0" not in text and "://" not in text


def _is_path(leaf: Leaf, strict: bool, roots: set[str]) -> bool:
    """True if a text is meant as a path, whether it exists or not. A model's name on a hub or at a service is not.

    With `strict`, it is an argument of a stage, where `READS` are paths whatever they look like.
    """
    text = leaf.text
    if leaf.key == CODE:
        return True
    if not _is_plain(text) or " " in text or text.startswith("pypi:"):
        return False
    if text.startswith(("/", "./", "../", "~")):
        return True
    first = Path(text).parts[0]
    inside = "/" in text and (first in roots or (not glob.has_magic(first) and Path(first).exists()))
    return inside or (leaf.key in READS and strict) or text.endswith(_SUFFIXES)


def _absolute(path: str | Path) -> Path:
    return expanded(path).absolute()


def _meet(one: Path, other: Path) -> bool:
    """True if the paths are equal or one lies in the other."""
    return one == other or one in other.parents or other in one.parents


def _matches(path: str, pattern: str) -> bool:
    return glob.has_magic(pattern) and Path(path).match(pattern)
