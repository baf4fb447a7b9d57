"""What a run keeps of its rollouts in a folder: a Parquet file of samples each, and a line of numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from lnlit.journal import Lines, read_lines, write_lines
from lnlit.sampling.sample import Sample
from lnlit.sampling.table import read_prompts, read_table, write_table
from lnlit.schema import read

Stage = Literal["train", "val"]

_NAME = re.compile(r"(train|val)-(\d+)\.parquet")
_METRICS, _WHAT = "metrics.jsonl", "numbers of rollouts"
#: Within a run's folder: where its history is, and the page made of it.
FOLDER, PAGE = "rollouts", "rollouts.html"


@dataclass(frozen=True)
class Entry:
    """A rollout in numbers, by the optimizer step that its weights are of. `rollout`: how many the run had drawn by
    then. `numbers` are those of `describe`; `seconds` those of each phase.
    """

    stage: Stage
    step: int
    rollout: int
    samples: int
    numbers: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)


class History:
    """A stage and a step have one entry and one file: a run that comes there again, after a restart, replaces both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _entries(self) -> dict[tuple[str, int], Entry]:
        return {(entry.stage, entry.step): entry for entry in _read(self.folder / _METRICS)}

    def entries(self, stage: Stage) -> list[Entry]:
        """By step."""
        return sorted((entry for (of, _), entry in self._entries.items() if of == stage), key=lambda entry: entry.step)

    def steps(self, stage: Stage) -> list[int]:
        """Those whose samples are there, ascending."""
        matches = (_NAME.fullmatch(file.name) for file in self.folder.glob("*.parquet"))
        return sorted(int(match[2]) for match in matches if match and match[1] == stage)

    def samples(self, stage: Stage, step: int) -> list[Sample]:
        return read_table(self._file(stage, step))

    def prompts(self, stage: Stage, step: int) -> list[str]:
        """The keys of its prompts, without repetitions."""
        return read_prompts(self._file(stage, step))

    def add(self, entry: Entry) -> None:
        self._entries[entry.stage, entry.step] = entry
        with Lines(self.folder / _METRICS, _WHAT) as lines:
            lines.append(asdict(entry))

    def add_samples(self, stage: Stage, step: int, samples: Sequence[Sample], keep: int) -> None:
        """Write their file. Of the training's, the first and the newest ones stay, `keep` (2 or more) in all."""
        write_table(self._file(stage, step), stage, step, samples)
        if stage == "train":
            steps = self.steps(stage)
            for old in steps[1 : max(1, len(steps) - (keep - 1))]:
                self._file(stage, old).unlink()

    def cut(self, last: int) -> None:
        """Forget what came after an optimizer step."""
        for stage in ("train", "val"):
            for step in self.steps(stage):
                if step > last:
                    self._file(stage, step).unlink()
        kept = {key: entry for key, entry in self._entries.items() if entry.step <= last}
        self._entries.clear()
        self._entries.update(kept)
        write_lines(self.folder / _METRICS, map(asdict, kept.values()))

    def _file(self, stage: Stage, step: int) -> Path:
        return self.folder / f"{stage}-{step}.parquet"


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """Those that JSON can hold: a mean of nothing is left out."""
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _read(file: Path) -> Iterable[Entry]:
    """Entries in the order in which they were written."""
    if not file.exists():
        return
    for number, data in read_lines(file, _WHAT):
        yield read(Entry, data, f"{file}:{number}:", then="Delete the line.")
