"""The runs of an ablation: one base configuration with its arms and seeds, each run with its own folder and YAML
files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lnlit import own, schema
from lnlit.cli.pipeline import DEFAULT_ROOT, OF_A_RUN, RESULTS, ROOT, Stage, position, stages_of
from lnlit.cli.python import arguments
from lnlit.cli.stage_commands import of_stage
from lnlit.cli.written import listed, texts
from lnlit.errors import UserError, shown
from lnlit.files import expanded
from lnlit.stages.compare import results_file, run_folder

#: The keys that an ablation sets in each run.
_OURS = ("seed_everything", "data.seed", f"trainer.{ROOT}")
#: Ends of the names of files that an ablation writes beside the folders of its arms.
_OF_FILES = (".md", ".json", ".png", ".lock")
#: numpy takes no larger one.
_LARGEST_SEED = 2**32 - 1
_NAME = re.compile(r"[\w.+-]+")
Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Ablation:
    """A base configuration and its arms.

    Args:
        base: A configuration of `lnlit fit`, a list of configurations or stages that follow each other, or a folder of
            them.
        arms: Name -> overrides by dotted key, like options on the command line. With several files, file -> overrides,
            and null leaves a file out. The others are compared with the first.
        seeds: Each sets `seed_everything` and the seed of the data.
        metrics: Names as logged by the last file, or `FILE:NAME` for another one. For a stage that writes JSON, the
            dotted path in it.
        out: The folder of the runs and of the table.
        settings: Overrides for all arms; an arm's own take precedence.
    """

    base: tuple[Stage, ...]
    arms: Mapping[str, Overrides]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    out: Path
    settings: Overrides

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str, folder: Path) -> Ablation:
        """Reads a mapping from a YAML file. Paths in `base` are relative to `folder`. Raises `UserError` for anything
        else."""
        asked: _Asked = schema.read(_Asked, dict(given), f"{where}:", then="See `lnlit ablate --help`.")
        base = _stages([asked.base] if isinstance(asked.base, str) else asked.base, where, folder)
        metrics = (asked.metrics,) if isinstance(asked.metrics, str) else tuple(asked.metrics)
        if not metrics:
            raise UserError(f"{where}: metrics: name one or more, such as val/loss.")
        if len(set(metrics)) < len(metrics):
            raise UserError(f"{where}: metrics: expected each once; got {shown(asked.metrics)}.")
        if len(set(asked.seeds)) < len(asked.seeds) or not asked.seeds:
            raise UserError(f"{where}: seeds: expected one or more, each once; got {shown(asked.seeds)}.")
        if max(asked.seeds) > _LARGEST_SEED:
            raise UserError(f"{where}: seeds: expected at most {_LARGEST_SEED}, got {max(asked.seeds)}.")
        if len(asked.arms) < 2:
            raise UserError(f"{where}: arms: expected two or more, as name: {{key: value}}; got {shown(asked.arms)}.")
        _check_names(asked.arms, f"{where}: arms")
        arms = {name: _overrides(arm, base, f"{where}: arms.{name}") for name, arm in asked.arms.items()}
        settings = _overrides(asked.settings, base, f"{where}: settings")
        if None in settings.values():
            raise UserError(f"{where}: settings: a file that no arm has is left out of base instead.")
        found = cls(base, arms, tuple(asked.seeds), metrics, expanded(asked.out), settings)
        for metric in metrics:
            try:
                found.measured(metric)
            except UserError as error:
                raise UserError(f"{where}: metrics: {error}") from error
        return found

    def measured(self, metric: str) -> tuple[str, str]:
        """(name of the file that a metric belongs to, its name there)."""
        stage, colon, name = metric.rpartition(":")
        at = position(self.base, stage) if colon else len(self.base) - 1
        return self.base[at].name, name


@dataclass(frozen=True)
class _Asked:
    """An `Ablation` as written in YAML."""

    base: str | list[str]
    arms: Mapping[str, Any]
    seeds: list[schema.Whole]
    metrics: str | list[str]
    out: str
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Run:
    """One arm with one seed. `texts` maps file names to the complete YAML of each stage."""

    arm: str
    seed: int
    folder: Path
    texts: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def files(self) -> list[str]:
        """The names of the stages' files, without .yaml."""
        return [Path(name).stem for name in self.texts]

    def write(self, root: Path) -> list[Stage]:
        """Writes the stages' files and returns them. A file with the same content is left as it is."""
        root.mkdir(parents=True, exist_ok=True)
        for name, text in self.texts.items():
            if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != text:
                (root / name).write_text(text, encoding="utf-8")
        return [Stage(root / name) for name in self.texts]


def runs_of(ablation: Ablation) -> list[Run]:
    """All runs, seed by seed, so that arms can be compared early. Raises `UserError` for a key or value that a stage
    refuses."""
    known: dict[str, dict[str, Any]] = {}
    arms = {arm: _resolved(ablation, arm, known) for arm in ablation.arms}
    return [_run(ablation, arm, seed, resolved) for seed in ablation.seeds for arm, resolved in arms.items()]


def stage_file(stage: Stage) -> str:
    """The name of a stage's file in a run: numbered, as `lnlit run` wants it."""
    return stage.file.name if stage.place else f"1_{stage.file.name}"


# reading


def _check_names(arms: Iterable[str], where: str) -> None:
    """Raises `UserError` for the name of an arm that cannot be a folder of its own beside the table."""
    seen: dict[str, str] = {}
    for name in arms:
        if not _NAME.fullmatch(name) or name.startswith(".") or Path(name).suffix in _OF_FILES:
            raise UserError(
                f"{where}: {shown(name)} names a folder too; allowed: letters, digits, and . + - _ within, but no "
                f"ending {', '.join(_OF_FILES)}."
            )
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"{where}: {shown(other)} and {shown(name)} are one folder on some disks. Rename one.")


def _stages(base: Sequence[str], where: str, folder: Path) -> tuple[Stage, ...]:
    paths = [folder / expanded(file) for file in base]
    if len(paths) == 1 and paths[0].is_dir():
        return tuple(stages_of(paths[0]))
    stages = tuple(map(Stage, paths))
    for stage in stages:
        name = stage.file.name
        if not stage.file.is_file():
            raise UserError(f"{where}: base: there is no file {str(stage.file)!r}.")
        if len(stages) > 1 and not stage.place:
            raise UserError(f"{where}: base: files that follow each other are named like 1_name.yaml, not {name}.")
        if sum(stage.name == other.name for other in stages) > 1:
            raise UserError(f"{where}: base: two files are named {stage.name}.")
    return stages


def _overrides(given: Any, base: Sequence[Stage], where: str) -> dict[str, dict[str, Any] | None]:
    """Maps each stage's name to its overrides, or None if the stage is left out."""
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: expected key: value, as in {{trainer.max_steps: 100}}; got {shown(given)}.")
    single = len(base) == 1
    by_stage = {base[0].name: given} if single else {base[position(base, str(key))].name: given[key] for key in given}
    if len(by_stage) < len(given) and not single:
        raise UserError(f"{where}: {', '.join(map(str, given))}: two of these name the same file.")
    found: dict[str, dict[str, Any] | None] = {}
    for name, overrides in by_stage.items():
        if not single and overrides is not None and not isinstance(overrides, Mapping):
            raise UserError(f"{where}: {name}: expected key: value, or null to leave it out; got {shown(overrides)}.")
        for key in overrides or ():
            plain = str(key).replace(".init_args.", ".").removesuffix("+")
            if plain in _OURS or plain.rpartition(".")[2] in ("help", "config", "print_config"):
                raise UserError(f"{where}: {key} is not for an arm: seeds and folders are the ablation's to choose.")
        found[name] = None if overrides is None else {str(key): value for key, value in overrides.items()}
    return found


# resolving


def _resolved(ablation: Ablation, arm: str, known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Maps file names to the complete configuration of each stage of an arm, without seeds and with paths as in the
    base. `known` holds those of other arms by their options, because each takes a while to read."""
    own = ablation.arms[arm]
    found = {}
    for stage in ablation.base:
        if own.get(stage.name, {}) is None:
            continue
        overrides = {**(ablation.settings.get(stage.name) or {}), **(own.get(stage.name) or {})}
        options = arguments(stage.file, overrides)
        if str(options) not in known:
            try:
                known[str(options)] = _configuration(stage, options)
            except UserError as error:
                raise UserError(f"arm {arm}: {error}") from error
        found[stage_file(stage)] = known[str(options)]
    return found


def _configuration(stage: Stage, options: list[str]) -> dict[str, Any]:
    if stage.kind is None:
        from lnlit.cli.train import resolved

        return resolved([*options, "--seed_everything=false"])  # each run has its own
    _, parser, config = of_stage(stage.kind).parsed(stage.kind, options)
    complete = yaml.safe_load(own.restored(parser.dump(config, skip_none=False)))
    return {key: value for key, value in complete.items() if key != "config"}


def _run(ablation: Ablation, arm: str, seed: int, resolved: Mapping[str, Mapping[str, Any]]) -> Run:
    """One run's files, with its seed. It writes into its own folder, and reads there what its own stages write."""
    folder = run_folder(ablation.out, arm, seed)
    moved = _moved(resolved.values(), folder)
    texts = {}
    for name, config in resolved.items():
        config = _placed(deepcopy(dict(config)), moved)
        if "stage" in config:
            config |= {"seed": seed} if "seed" in config else {}
        else:
            config["seed_everything"] = seed
            settings = config["data"].get("init_args", {})
            settings |= {"seed": seed} if "seed" in settings else {}
            results = {"out": str(results_file(folder, Path(name).stem))}
            callback = {"class_path": "lnlit.callbacks.RunResults", "init_args": results}
            config["trainer"]["callbacks"] = [*listed(config["trainer"].get("callbacks")), callback]
        texts[name] = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return Run(arm, seed, folder, texts)


def _moved(configs: Iterable[Mapping[str, Any]], folder: Path) -> dict[str, str]:
    """Maps each path that a stage writes to its place in the run's folder, which keeps enough of the path to tell them
    apart. What lies below a result moves with it. From a fit's own folder, which may hold other things, only what every
    fit writes is moved."""
    written = [(key, text) for config in configs for key, text in texts(config) if key in (RESULTS, ROOT)]
    if not written:
        return {}
    absolute = {text: expanded(text).absolute() for _, text in written}
    above = os.path.commonpath([path.parent for path in absolute.values()])
    moved = {}
    for key, text in written:
        place = str(folder / os.path.relpath(absolute[text], above))
        within = ["", "/"] if key == RESULTS else ["", *(f"/{name}" for name in OF_A_RUN)]
        moved |= {text + part: place + part for part in within}
    return moved


def _placed(node: Any, moved: Mapping[str, str], key: str = "") -> Any:
    """A configuration in which paths that one of its stages writes lead into the run's folder."""
    if isinstance(node, dict):
        return {name: _placed(value, moved, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, moved, key) for value in node]
    if not isinstance(node, str) or (node == DEFAULT_ROOT and key != ROOT):
        return node
    if node in moved:
        return moved[node]
    above = max((path for path in moved if path.endswith("/") and node.startswith(path)), key=len, default=None)
    return node if above is None else moved[above] + node[len(above) :]
