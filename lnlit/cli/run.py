"""`lnlit run FOLDER`: runs a folder of numbered YAML files, one stage each, in order, and skips finished ones.

A file with a `stage:` key is a stage of a command such as `lnlit search`; any other is a configuration of `lnlit fit`.
Each stage is its own process, so that Lightning can start it once per GPU and its memory is free for the next. Under
torchrun the stages share its processes and nodes (`processes.py`).

A stage is finished if it has run, its results exist, and neither its file, nor an included one, nor any file or folder
that it names has changed since. If something has changed, `lnlit run` stops and says what: results are only set aside
when asked to by `--again`.

At its end it writes RUNS/FOLDER.html: what each stage was, its time, curves, pictures and tables.
"""

from __future__ import annotations

import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from lnlit.cli.arguments import CommandParser
from lnlit.cli.ledger import Ledger, Verdict, has_index
from lnlit.cli.pipeline import Stage, check_roots, position, stages_of
from lnlit.cli.processes import Processes
from lnlit.cli.put_aside import put_aside
from lnlit.cli.recipes import comment_of
from lnlit.cli.written import Written
from lnlit.errors import UserError
from lnlit.files import check_output, expanded, write_file

#: What every page of a pipeline holds.
_PAGE_MARK = b"stages have finished, in "
#: States of stages that will be run.
_TO_RUN = ("gone", "again", "started", "new")


def main(argv: list[str]) -> int:
    """Run a pipeline. If interrupted, the same command continues. STAGE is a number such as 3b, or a name."""
    parser = CommandParser(prog="lnlit run", description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds 1_name.yaml, 2_name.yaml, ...")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="begin here; what comes before is taken as it is")
    parser.add_argument("--until", dest="last", metavar="STAGE", help="end with this stage")
    parser.add_argument("--only", metavar="STAGE", help="this stage alone: --from and --until in one")
    parser.add_argument(
        "--again",
        action="append",
        default=[],
        metavar="STAGE",
        help="run it and what builds on it anew; what they wrote is put aside, not deleted. May be given several times",
    )
    parser.add_argument("--status", action="store_true", help="say how each stage stands, and stop")
    parser.add_argument("--dry-run", action="store_true", help="check all files, say what would run, and stop")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where finished stages are noted")
    options = parser.parse_args(argv)
    stages = stages_of(options.folder)
    chosen = _chosen(stages, options)
    ledger = Ledger(options.runs, options.folder)
    if options.status:
        return _show(ledger, stages, chosen)
    check_roots(stages)
    again = _again(stages, chosen, options)
    if options.dry_run:
        return _dry_run(ledger, stages, chosen, again)
    processes = Processes()
    with processes.together():
        if processes.rank:
            return processes.follow()
        code = 2
        try:
            with ledger.locked() as lock:
                check_output(ledger.page, mark=_PAGE_MARK)
                ledger = Ledger(options.runs, options.folder)  # nobody else writes it from here on
                ledger.ask_again(again)
                to_run = _to_run(ledger, stages, chosen)
                for stage in to_run:
                    processes.check(stage)
                _check(stages, to_run)
                try:
                    code = run_stages(ledger, stages, chosen, lock, processes)
                finally:
                    _write_page(ledger, stages)
                if code == 0:  # what went wrong is the last thing that is said
                    print(f"{ledger.page}: what has run, with curves, pictures and tables", file=sys.stderr)
        finally:
            processes.dismiss(code)
        return code


def _chosen(stages: Sequence[Stage], options: Namespace) -> Sequence[Stage]:
    """The stages selected by --from, --until and --only."""
    if options.only is not None and (options.first is not None or options.last is not None):
        raise UserError("--only is --from and --until in one; leave these out, or that.")
    first, last = options.only or options.first, options.only or options.last
    start = 0 if first is None else position(stages, first)
    end = len(stages) if last is None else position(stages, last) + 1
    if start >= end:
        raise UserError(f"--until {last} comes before --from {first}, so there is nothing to run.")
    return stages[start:end]


def _again(stages: Sequence[Stage], chosen: Sequence[Stage], options: Namespace) -> list[Stage]:
    """The stages to be run again: those asked for, and all chosen later ones that depend on one of them."""
    asked = [stages[position(stages, wanted)] for wanted in options.again]
    for stage in asked:
        if stage not in chosen:
            raise UserError(f"--again {stage.number}: this stage is not among those to be run.")
    found: list[Stage] = []
    for stage in chosen:
        if stage in asked or any(stage.depends_on(other) for other in found):
            found.append(stage)
    return found


def run_stages(
    ledger: Ledger, stages: Sequence[Stage], chosen: Sequence[Stage], lock: int, processes: Processes | None = None
) -> int:
    """Runs the chosen stages of a folder that are not finished. Returns the exit code of the first that failed, or 0.
    Raises `UserError` for a stage that has changed since it ran, unless it was asked to run again."""
    for stage in chosen:
        verdict = ledger.verdict(stage, stages)
        if verdict.state == "changed":
            raise UserError(_refusal(stage, verdict, chosen))
        if verdict.state == "finished":
            _say(stage, verdict.text)
            continue
        if ledger.is_whole(stage, verdict):
            ledger.note(stage, verdict.made_by, 0.0)
            _say(stage, f"finished, {' and '.join(stage.outs)} is there")
            continue
        if verdict.state == "gone":
            _check_goes_on(stage, verdict)
        if verdict.state in ("again", "gone"):
            for line in put_aside(stage, stages, ledger.damaged(stage) if verdict.state == "gone" else None):
                _say(stage, line)
        if verdict.state == "gone" or "changed since" in verdict.text:
            _say(stage, f"{verdict.text}; runs again" if verdict.state == "gone" else verdict.text)
        if not any(map(has_index, stage.outs)):
            ledger.note(stage, verdict.made_by, None)
        _say(stage, f"lnlit {' '.join(stage.command)}")
        started = time.monotonic()
        command = [sys.executable, "-m", "lnlit.cli.main", *stage.command, *stage.options]
        code, signalled = (processes or Processes()).run(stage, command, lock)
        if code == 0:
            _check_results(stage)
            ledger.note(stage, verdict.made_by, time.monotonic() - started)
        if code or signalled:
            return code or 128 + signalled
    return 0


def _write_page(ledger: Ledger, stages: Sequence[Stage]) -> None:
    """Writes the page of all stages: what they are, how they stand, and what they have written."""
    from lnlit.report.run_page import Ran, page

    shown = [
        Ran(
            stage.name,
            comment_of(stage.file),
            " ".join(stage.command),
            ledger.verdict(stage, stages).text,
            ledger.seconds(stage),
            stage.outs,
            stage.root,
        )
        for stage in stages
    ]
    write_file(ledger.page, page(str(ledger.folder), shown, ledger.page.parent))


def _check_results(stage: Stage) -> None:
    """Raises `UserError` if a stage has succeeded without writing its results."""
    if missing := [out for out in stage.outs if not expanded(out).exists()]:
        raise UserError(f"{stage.file}: has ended, but {' and '.join(missing)} is not there. {_advice(stage)}")


def _check_goes_on(stage: Stage, verdict: Verdict) -> None:
    """Raises `UserError` for a finished fit whose result is gone but whose checkpoint exists: it would resume at the
    end of its training and write nothing."""
    if stage.root is not None and any((expanded(stage.root) / "checkpoints").glob("step-*.ckpt")):
        raise UserError(f"{stage.file}: {verdict.text}. {_advice(stage)}")


def _advice(stage: Stage) -> str:
    if stage.root is None:
        return f"To run it anew: --again {stage.number}."
    return (
        f"The checkpoint in {stage.root}/checkpoints is at the end of the training: `lnlit export` writes a model from "
        f"it; --again {stage.number} trains anew."
    )


def _to_run(ledger: Ledger, stages: Sequence[Stage], chosen: Sequence[Stage]) -> list[Stage]:
    """The stages that will be run in the current state."""
    return [stage for stage in chosen if ledger.verdict(stage, stages).state in _TO_RUN]


def _check(stages: Sequence[Stage], to_run: Sequence[Stage]) -> None:
    """Raises `UserError` for any wrong key, value or path of these stages before the first of them starts."""
    _check_own_results(stages)
    wrong, seen = [], set()
    for stage in to_run:
        index = stages.index(stage)
        for leaf, problem in stage.unwritten(stages[:index], stages[index + 1 :]):
            if leaf.text in seen:
                continue
            seen.add(leaf.text)
            where = Written(["--config", str(stage.file)]).where(leaf.place) or f"{stage.file}: "
            wrong.append(f"{where}{leaf.key}: {problem}")
            if stage is not to_run[0]:
                wrong[-1] += f" Until it is there, end before this stage: --until {stages[index - 1].number}."
    if wrong:
        raise UserError("\n".join(wrong))
    if len(to_run) > 1:  # a single one says it itself
        command = [sys.executable, "-m", "lnlit.cli.check", *(str(stage.file) for stage in to_run)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode == 2:
            lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
            raise UserError("\n".join(lines))
        if done.returncode:
            print(done.stderr, file=sys.stderr, end="")
            raise RuntimeError(f"{' '.join(command)} failed")


def _check_own_results(stages: Sequence[Stage]) -> None:
    """Raises `UserError` if two stages write one result: the second would replace what the first is recorded to have
    made."""
    owners: dict[Path, Stage] = {}
    for stage in stages:
        for out in stage.outs:
            if (other := owners.setdefault(expanded(out).resolve(), stage)) is not stage:
                raise UserError(f"{stage.file}: writes {out}, as {other.file} does. Give each a result of its own.")


def _refusal(stage: Stage, verdict: Verdict, chosen: Sequence[Stage]) -> str:
    rest = chosen[chosen.index(stage) + 1 :]
    keep = f" Or take it as it is and go on behind it: --from {rest[0].number}." if rest else ""
    return (
        f"{stage.file}: this stage has {verdict.text}. Its result may be another now. To run it and what builds on it "
        f"anew: --again {stage.number}, which puts their results aside.{keep}"
    )


def _show(ledger: Ledger, stages: Sequence[Stage], chosen: Sequence[Stage]) -> int:
    if holder := ledger.holder():
        print(f"running: {holder}")
    width = max(len(stage.name) for stage in chosen)
    for stage in chosen:
        print(f"{stage.name:<{width}}  {ledger.verdict(stage, stages).text}")
    return 0


def _dry_run(ledger: Ledger, stages: Sequence[Stage], chosen: Sequence[Stage], again: Sequence[Stage]) -> int:
    to_run = _to_run(ledger, stages, chosen)
    _check(stages, [stage for stage in chosen if stage in again or stage in to_run])
    width = max(len(stage.name) for stage in chosen)
    for stage in chosen:
        verdict = ledger.verdict(stage, stages)
        runs = stage in again or stage in to_run
        text = "to be run again" if stage in again else verdict.text
        does = f"runs `lnlit {' '.join(stage.command)}`: {text}" if runs else text
        print(f"{stage.name:<{width}}  {does}")
        if verdict.state == "changed" and stage not in again:
            raise UserError(_refusal(stage, verdict, chosen))
    return 0


def _say(stage: Stage, text: str) -> None:
    print(f"{stage.file}: {text}", file=sys.stderr, flush=True)
