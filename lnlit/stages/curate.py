"""`lnlit curate`: training rows from rows, by steps that count what they drop (Llama-Nemotron section 3)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lnlit.curation._shards import read_counts
from lnlit.curation.counts import table
from lnlit.curation.domains import NONE, domain_table
from lnlit.curation.executors import Executor, Local, alone
from lnlit.curation.phases import planned
from lnlit.curation.settings import closing_shared, stated
from lnlit.curation.step import Counted, PipelineStep
from lnlit.errors import UserError, check_positive
from lnlit.files import check_output, expanded
from lnlit.interfaces import Source
from lnlit.journal import Journal
from lnlit.progress import say

_WHAT = "curated rows"


def curate(
    source: Source | dict[str, Source],
    steps: list[PipelineStep],
    out: str,
    executor: Executor | None = None,
    workers: int | None = None,
    tasks: int = 8,
    strict: bool = False,
) -> Path:
    """Run rows through steps, and print how many came into each step, how many went on and why the others did not.

    Interrupted in any way, the same command goes on with the tasks that are not done, and writes the same file that it
    would have written. A finished one is not done again. The number of workers changes nothing but the time.

    Args:
        source: Rows of any source, or several sources by name, which becomes the `category` of rows without one.
        steps: The steps in order: classes of `lnlit.curation`, any block of datatrove, or your own.
        out: The JSONL file to write. Beside it, `NAME.counts.json` holds the counts, and `NAME.work` is a folder of
            scratch while the command has not ended.
        executor: `Slurm` or `Ray` to run on a cluster. Null runs on this machine.
        workers: The number of tasks that run at the same time: one on this machine, any number on a cluster, unless
            given.
        tasks: The number of parts that the rows are divided into. Which of several duplicates is kept may depend on it.
        strict: Stop at the first row that cannot be read, instead of counting it.
    """
    check_positive("curate", workers=workers, tasks=tasks)
    sources = source if isinstance(source, Mapping) else {"": source}
    if not sources:
        raise UserError("curate.source: expected a source, or at least one by name")
    file = check_output(expanded(out), inputs=_inputs(sources))
    if file.suffix != ".jsonl":
        raise UserError(f"curate.out: expected a name that ends with .jsonl, got {file.name!r}")
    counts = file.with_name(f"{file.stem}.counts.json")
    work = file.with_name(f"{file.name}.work").absolute()  # fsspec would keep the folder that a relative path had first
    settings = {"source": stated(sources), "steps": stated(steps), "tasks": tasks}
    before = read_counts(counts)
    if before and before["settings"] == settings and file.exists() and not work.exists():
        say("curate: these rows are there already, of the same source and steps")
        shutil.rmtree(_old(work), ignore_errors=True)  # of a run that was killed while it cleaned up
        return _told(before, file)
    with alone(work), Journal(work / "settings.jsonl", settings, _WHAT):
        phases = planned(sources, steps, work, tasks, file.absolute(), counts.absolute(), settings)
        for block in (block for phase in phases for block in phase.blocks if isinstance(block, Counted)):
            block.strict = strict
        with closing_shared():
            ended = (executor or Local()).run(phases, work, workers)
        if not ended:
            say("curate: submitted; the same command tells the counts when all jobs have ended")
            return file
        _remove(work)
    return _told(read_counts(counts), file)


def _remove(work: Path) -> None:
    """Deletes the scratch. It gets another name first, lest half of it be taken for work that was interrupted."""
    shutil.rmtree(_old(work), ignore_errors=True)
    work.rename(_old(work))
    shutil.rmtree(_old(work))


def _old(work: Path) -> Path:
    return work.with_name(f"{work.name}.old")


def _told(found: Mapping[str, Any] | None, file: Path) -> Path:
    """Prints the counts of a finished run."""
    if found is None:
        raise UserError(f"{file}: its counts are gone; another process has changed them. Run the command again.")
    lines = table(found["steps"])
    if set(found["domains"]) - {NONE}:
        lines += ["", *domain_table(found["domains"])]
    for line in lines:
        say(line)
    return file


def _inputs(sources: Mapping[str, Source]) -> list[str]:
    """The files that are read, which must not be written."""
    found: list[str] = []
    for source in sources.values():
        behind: Any = source
        while isinstance(behind, Source):
            found += map(str, getattr(behind, "files", ()))
            behind = vars(behind).get("source")
    return found
