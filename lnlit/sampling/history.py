"""The history of a run's rollouts in a folder: Parquet files of samples, and one line of metrics per rollout."""

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
#: The folder of the history and the page made from it, relative to the run's folder.
FOLDER, PAGE = "rollouts", "rollouts.html"


@dataclass(frozen=True)
class Entry:
    """The metrics of a rollout, at the optimizer step of its weights. `rollout` is how many rollouts the run had drawn
    by then, `numbers` are those of `describe`, and `seconds` the time of each phase."""

    stage: Stage
    step: int
    rollout: int
    samples: int
    numbers: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)


class History:
    """The entries and sample files of a run, one of each per stage and step. A restarted run that reaches a step again
    replaces both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _entries(self) -> dict[tuple[str, int], Entry]:
        return {(entry.stage, entry.step): entry for entry in _read(self.folder / _METRICS)}

    def entries(self, stage: Stage) -> list[Entry]:
        """The entries of a stage, sorted by step."""
        return sorted((entry for (of, _), entry in self._entries.items() if of == stage), key=lambda entry: entry.step)

    def steps(self, stage: Stage) -> list[int]:
        """The steps whose samples are there, in ascending order."""
        matches = (_NAME.fullmatch(file.name) for file in self.folder.glob("*.parquet"))
        return sorted(int(match[2]) for match in matches if match and match[1] == stage)

    def samples(self, stage: Stage, step: int) -> list[Sample]:
        return read_table(self._file(stage, step))

    def prompts(self, stage: Stage, step: int) -> list[str]:
        """The distinct keys of a step's prompts."""
        return read_prompts(self._file(stage, step))

    def add(self, entry: Entry) -> None:
        self._entries[entry.stage, entry.step] = entry
        with Lines(self.folder / _METRICS, _WHAT) as lines:
            lines.append(asdict(entry))

    def add_samples(self, stage: Stage, step: int, samples: Sequence[Sample], keep: int) -> None:
        """Writes the samples of a step. Of the training steps, the first and the newest files are kept, `keep` (2 or
        more) in total."""
        write_table(self._file(stage, step), stage, step, samples)
        if stage == "train":
            steps = self.steps(stage)
            for old in steps[1 : max(1, len(steps) - (keep - 1))]:
                self._file(stage, old).unlink()

    def cut(self, last: int) -> None:
        """Deletes everything after an optimizer step."""
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
    """The finite numbers, which JSON can hold. The mean of no values is left out."""
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _read(file: Path) -> Iterable[Entry]:
    """The entries in the order in which they were written."""
    if not file.exists():
        return
    for number, data in read_lines(file, _WHAT):
        yield read(Entry, data, f"{file}:{number}:", then="Delete the line.")
