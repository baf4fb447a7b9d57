"""How a list of steps becomes parts of a pipeline, each of which one executor of datatrove runs after the one before.

Within a part, rows pass from step to step in memory. A `Barrier` is a step that has to see all rows before it knows
which to keep, so that it ends a part: de-duplication, a blend.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from lnlit.curation._shards import Collect, Read, ReadShard, WriteShard
from lnlit.curation.asking import AskStep
from lnlit.curation.step import Counted
from lnlit.interfaces import Source


@dataclass(frozen=True)
class Phase:
    """One part of a pipeline: blocks that `tasks` tasks run. The counts of its blocks are shown if it is `counted`."""

    name: str
    blocks: Sequence[PipelineStep]
    tasks: int
    counted: bool = False


class Barrier(Counted):
    """A step whose `phases` look at all rows before `run` decides about each."""

    @abstractmethod
    def phases(self, shards: str, work: str, tasks: int) -> list[Phase]:
        """What has to run first, on a folder of `tasks` shards. `work` is a folder for what it finds."""


def planned(
    sources: Mapping[str, Source],
    steps: Sequence[PipelineStep],
    work: Path,
    tasks: int,
    out: Path,
    counts: Path,
    settings: Mapping[str, Any],
) -> list[Phase]:
    """All parts of a pipeline in order, from its sources to the file `out`. Its scratch lies in `work`."""
    folder = str(work / "rows" / "0")
    found = [Phase("read", [Read(sources, folder, tasks)], 1, counted=True)]
    waiting: list[PipelineStep] = []

    def run(blocks: Sequence[PipelineStep]) -> str:
        to = str(work / "rows" / str(len(found)))
        names = ", ".join(dict.fromkeys(str(block.name) for block in blocks))
        found.append(Phase(names, [ReadShard(folder, text=None), *blocks, WriteShard(to)], tasks, counted=True))
        return to

    for number, step in enumerate(steps):
        if isinstance(step, AskStep):
            step.place, step.journals = str(number), str(work / "answers" / str(number))
        if isinstance(step, Barrier):
            if waiting:
                folder, waiting = run(waiting), []
            found += step.phases(folder, str(work / "barriers" / str(number)), tasks)
        waiting.append(step)
    if waiting:
        folder = run(waiting)
    logs = [str(logs_of(work, number)) for number, phase in enumerate(found) if phase.counted]
    found.append(Phase("write", [Collect(folder, str(out), str(counts), logs, settings)], 1))
    return found


def logs_of(work: Path, number: int) -> Path:
    """The folder in which datatrove keeps which tasks of a part of the pipeline are done, and their statistics."""
    return work / "parts" / f"{number:02d}"
