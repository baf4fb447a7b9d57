"""`lnlit ablate FILE.yaml`: one configuration, several arms, several seeds, and a table of the differences.

Every arm and seed is a run in its own folder, `OUT/ARM/seed-N`, with the complete YAML of its stages, so that `lnlit
fit` can repeat each of them. Runs are started, guarded and recorded as by `lnlit run`: if interrupted, the same command
continues, and finished runs are not repeated. A run whose settings or inputs have changed since is run again, and its
old results are set aside.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lnlit.cli.arguments import CommandParser
from lnlit.cli.arms import Ablation, Run, runs_of, stage_file
from lnlit.cli.ledger import Ledger, Verdict
from lnlit.cli.main import told
from lnlit.cli.pipeline import Stage, check_roots, position
from lnlit.cli.run import run_stages
from lnlit.cli.written import Written, options_of
from lnlit.errors import UserError
from lnlit.files import check_output, read_json
from lnlit.stages.compare import DATA, FINISHED, Asked, Metric, Outcome, compare

#: Exit codes of a stage that was stopped by SIGHUP, SIGINT or SIGTERM.
_STOPPED = (129, 130, 143)


def main(argv: list[str]) -> int:
    """Compare arms of one configuration over seeds. If interrupted, the same command continues."""
    parser = CommandParser(
        prog="lnlit ablate",
        description=main.__doc__,
        epilog="Other options, such as --trainer.max_steps 10, are settings of every arm; with a base of several "
        "files their name comes first: --5_sft.trainer.max_steps 10.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="has base, arms, seeds, metrics and out")
    parser.add_argument("--seeds", type=int, nargs="+", help="these instead of the file's")
    parser.add_argument("--out", help="another folder than the file's")
    parser.add_argument("--status", action="store_true", help="say how each run stands, and stop")
    parser.add_argument("--dry-run", action="store_true", help="check all runs, say what would run, and stop")
    options, rest = parser.parse_known_args(argv)
    ablation = _read(options, rest)
    if options.status or options.dry_run:
        return _show(ablation, check=options.dry_run)
    table, code = _carry_out(ablation)
    if code not in _STOPPED:
        print(table)
    return code


@told
def ablate(
    config: str | Path | Sequence[str | Path],
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    metrics: str | Sequence[str],
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compares arms of one configuration over seeds, as `lnlit ablate` does. Returns the content of
    `out`/ablation.json.

    Args:
        config: A YAML file of `lnlit fit`. If there are several, or a folder, each is a stage that follows the one
            before.
        arms: Name -> overrides, `{"low": {"model.optimizer.learning_rate": 1e-5}, ...}`. With several files, name ->
            file -> overrides, and None leaves a file out. The others are compared with the first arm.
        seeds: Each sets `seed_everything` and the seed of the data.
        metrics: The metrics to compare, by the names that are logged.
        out: The folder to write. Runs that are finished there are not repeated.
        settings: Overrides for all arms.

    Raises `UserError` for settings that do not fit, and `KeyboardInterrupt` when a signal has stopped a run. Runs that
    fail are counted in the table.
    """
    base = [str(file) for file in ([config] if isinstance(config, str | Path) else config)]
    given = {"base": base, "arms": arms, "seeds": list(seeds), "metrics": metrics, "out": str(out)}
    ablation = Ablation.of({**given, "settings": settings}, "ablate", Path())
    _, code = _carry_out(ablation)
    if code in _STOPPED:
        raise KeyboardInterrupt
    return read_json(ablation.out / DATA)


def _read(options: Namespace, rest: Sequence[str]) -> Ablation:
    """The file, with the command line's overrides applied."""
    given = dict(Written(["--config", str(options.file)]).tree)
    given |= {key: value for key in ("seeds", "out") if (value := getattr(options, key)) is not None}
    own = _settings(rest)
    settings = given.get("settings") or {}
    if own and isinstance(settings, dict):
        stages = Ablation.of({**given, "settings": None}, str(options.file), options.file.parent).base
        if len(stages) > 1:
            for key, value in own.items():
                stage, _, inner = key.partition(".")
                name = stages[position(stages, stage)].name
                settings = {**settings, name: {**(settings.get(name) or {}), inner: value}}
        else:
            settings = {**settings, **own}
        given["settings"] = settings
    return Ablation.of(given, str(options.file), options.file.parent)


def _settings(rest: Sequence[str]) -> dict[str, str]:
    """Dotted options as a mapping from key to value."""
    found: dict[str, str] = {}
    for option, value in options_of(rest):
        if not option.startswith("--") or "." not in option:
            raise UserError(f"unknown option {option!r}. See `lnlit ablate --help`.")
        if value is None:
            raise UserError(f"{option}: expected a value, as in {option} VALUE.")
        found[option.removeprefix("--")] = value
    return found


# what there is to do


@dataclass(frozen=True)
class Standing:
    """The state of a run. `anew` names the stages that must be repeated, and `text` describes the state."""

    text: str
    finished: bool
    anew: tuple[str, ...] = ()


def _show(ablation: Ablation, check: bool) -> int:
    """Prints the state of each run and, after checking all of them, what would run."""
    if holder := Ledger(ablation.out, ablation.out).holder():
        print(f"running: {holder}")
    runs = runs_of(ablation)
    standings = _standings(runs, check)
    width = max(len(run.name) for run in runs)
    for run, standing in zip(runs, standings, strict=True):
        does = "" if standing.finished or not check else "runs: "
        print(f"{run.name:<{width}}  {does}{standing.text}")
    return 0


def _standings(runs: Sequence[Run], check: bool) -> list[Standing]:
    """The state of each run; nothing in its folder is changed. With `check`, raises `UserError` for what an unfinished
    run lacks."""
    found, wrong = [], {}
    known: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, run in enumerate(runs):
            stages = run.write(Path(scratch) / str(number))
            check_roots(stages)
            ledger = Ledger(run.folder, run.folder, known)
            found.append(_standing(ledger, stages))
            known |= ledger.digests.used
            for at, stage in enumerate(stages if check and not found[-1].finished else ()):
                for leaf, problem in stage.unwritten(stages[:at], stages[at + 1 :]):
                    wrong.setdefault(leaf.text, f"{run.name}: {leaf.key}: {problem}")
    if wrong:
        raise UserError("\n".join(wrong.values()))
    return found


def _standing(ledger: Ledger, stages: Sequence[Stage]) -> Standing:
    verdicts = [ledger.verdict(stage, stages) for stage in stages]
    anew: list[Stage] = []
    for stage, verdict in zip(stages, verdicts, strict=True):
        if _is_stale(stage, verdict) or any(stage.depends_on(other) for other in anew):
            anew.append(stage)
    if anew:
        why = next(v.text for s, v in zip(stages, verdicts, strict=True) if s is anew[0])
        return Standing(f"{anew[0].name}: {why}; anew", False, tuple(stage.name for stage in anew))
    for stage, verdict in zip(stages, verdicts, strict=True):
        if verdict.state != "finished" and not _is_whole(stage, verdict):
            return Standing(f"{stage.name}: {verdict.text}", False)
    return Standing("finished", True)


def _is_stale(stage: Stage, verdict: Verdict) -> bool:
    """True if what exists of a stage does not belong to this run as it is now, or cannot be resumed: an export without
    the record of its finished fit, which a resumed fit would refuse to replace."""
    if verdict.state == "started":
        begun = stage.kind is None and any(Path(out).exists() for out in stage.outs)
        return "changed since" in verdict.text or (begun and not _is_whole(stage, verdict))
    return verdict.state in ("changed", "gone", "again")


def _is_whole(stage: Stage, verdict: Verdict) -> bool:
    """True if a fit that was not recorded as finished is finished: it writes its results last and atomically."""
    return verdict.state == "started" and stage.kind is None and all(Path(out).exists() for out in stage.outs)


def _carry_out(ablation: Ablation) -> tuple[str, int]:
    """(the table, exit code): 0 if every run is finished, 2 if some have failed, 130 or similar if one was stopped."""
    check_output(ablation.out, folder=True)
    runs = runs_of(ablation)
    _standings(runs, check=True)
    outcomes: list[Outcome] = []
    known: dict[str, list[Any]] = {}
    with Ledger(ablation.out, ablation.out).locked():
        for number, run in enumerate(runs, 1):
            print(f"ablate: {run.name} ({number} of {len(runs)})", file=sys.stderr, flush=True)
            code, text, digests = _carry_out_one(run, known)
            if code in _STOPPED:
                return "", code
            settings = {"settings": ablation.settings, "arm_settings": ablation.arms[run.arm]}
            outcomes.append(Outcome(run.arm, run.seed, text, run.files, {**settings, "made_by": digests}))
        table = compare(ablation.out, _asked(ablation), outcomes)
    if failed := [f"{each.arm}, seed {each.seed}: {each.text}" for each in outcomes if each.text != FINISHED]:
        some = f"{len(failed)} of {len(runs)} runs have failed; the same command tries them again"
        print("\n".join([f"{some}:", *failed]), file=sys.stderr, flush=True)
    return table, 2 if failed else 0


def _carry_out_one(run: Run, known: dict[str, list[Any]]) -> tuple[int, str, dict[str, Any]]:
    """(exit code, outcome in words, digests by stage of what it was made by). `known` holds digests that runs share."""
    stages = run.write(run.folder)
    with Ledger(run.folder, run.folder).locked() as lock:
        ledger = Ledger(run.folder, run.folder, known)
        standing = _standing(ledger, stages)
        if standing.anew:
            print(f"{run.name}: {standing.text}", file=sys.stderr, flush=True)
            ledger.ask_again([stage for stage in stages if stage.name in standing.anew])
        for stage in stages:
            if _is_whole(stage, verdict := ledger.verdict(stage, stages)):
                ledger.note(stage, verdict.made_by, 0.0)
        try:
            code = run_stages(ledger, stages, stages, lock)
        except UserError as error:  # a fit that stands at its end without results, say: going on would not help
            ledger.ask_again([stage for stage in stages if ledger.verdict(stage, stages).state == "started"])
            return 2, f"failed: {error}", {}
        made_by = {stage.name: ledger.verdict(stage, stages).made_by for stage in stages}
        known |= ledger.digests.used
        digests = {name: {part: made[part] for part in ("recipe", "inputs")} for name, made in made_by.items()}
        return code, f"failed: exit code {code}" if code else FINISHED, digests


def _asked(ablation: Ablation) -> Asked:
    """The comparison to make, by files."""
    metrics = {}
    for metric in ablation.metrics:
        name, key = ablation.measured(metric)
        stage = next(stage for stage in ablation.base if stage.name == name)
        metrics[metric] = Metric(Path(stage_file(stage)).stem, key, is_fit=stage.kind is None)
    return Asked(metrics, tuple(ablation.arms), ablation.seeds)
