"""Kills a pipeline that asks a real model: kill_asking.py FOLDER MODEL KILLS [LONGEST_S].

Two steps ask the model at MODEL through lnlit's own engine. One run is left alone, in FOLDER/whole. Another, in
FOLDER/killed, is killed KILLS times, each time at a random moment within LONGEST_S seconds of its start, and then left
to end; where it ends before, it starts anew in FOLDER/killed2 and so on. Prints whether the files are the same bytes,
and what was generated again. Exits with 1 if a file differs, or if a process generated more than one batch again.
LONGEST_S is half of what the first run took unless it is given.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import lnlit.curation._answering  # noqa: F401 - so that forks need not import it
from lnlit.curation.model import Model
from lnlit.curation.questions import VaryQuestions
from lnlit.curation.solutions import Generate
from lnlit.data.sources import JsonlSource
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.settings import Sampling
from lnlit.stages.curate import curate

ROWS, ROWS_PER_BATCH = 24, 4


class Logged(NativeEngine):
    """Notes which completions it is asked for, before it makes them: the process, and the seeds of a batch."""

    def __init__(self, log: str) -> None:
        super().__init__(batch_size=16, dtype="float32", device="cpu")
        self._log = log

    def generate(self, requests, sampling):
        with Path(self._log).open("a") as stream:
            stream.write(json.dumps([os.getpid(), [each.seed for each in requests]]) + "\n")
        return super().generate(requests, sampling)


def run(folder: Path, model: str) -> None:
    rows = [{"prompt": f"What is {n % 7 + 1} plus {n % 5 + 2}? Answer in one word."} for n in range(ROWS)]
    source = folder.parent / "rows.jsonl"
    source.write_text("".join(json.dumps({**row, "number": number}) + "\n" for number, row in enumerate(rows)))
    log = str(folder / "asked.jsonl")
    solver = Model(model, Logged(log), Sampling(samples_per_prompt=2, max_new_tokens=24))
    varied = Model(model, Logged(log), Sampling(samples_per_prompt=1, max_new_tokens=8, temperature=0.7))
    steps = [Generate([solver], ROWS_PER_BATCH), VaryQuestions(varied, rows_per_batch=ROWS_PER_BATCH)]
    curate(JsonlSource(str(source)), steps, str(folder / "out.jsonl"), tasks=2)


def life(folder: Path, model: str, longest: float | None) -> bool:
    """One process, killed after so many seconds unless it has ended. True if it was killed."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        run(folder, model)
        os._exit(0)
    end = time.monotonic() + (longest if longest is not None else 3600)
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended and status:
            raise SystemExit(f"failed by itself: {(folder / 'log.txt').read_text()[-2000:]}")
        if ended:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


@dataclass
class Asked:
    """What the processes of one folder generated: batches, the completions of each, and what was generated again."""

    batches: int = 0
    completions: Counter[int] = field(default_factory=Counter)
    again_by_process: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, folder: Path) -> Asked:
        found, seen = cls(), set[tuple[int, ...]]()
        for process, seeds in map(json.loads, (folder / "asked.jsonl").open()):
            found.batches += 1
            found.completions.update(seeds)
            found.again_by_process[process] += tuple(seeds) in seen
            seen.add(tuple(seeds))
        return found


def main(folder: Path, model: str, kills: int, longest: float | None) -> int:
    draw, killed, places, begin = random.Random(2), 0, list[Path](), time.monotonic()
    life(folder / "whole", model, None)
    whole, kept = Asked.of(folder / "whole"), (folder / "whole/out.jsonl").read_bytes()
    completions, rows = sum(whole.completions.values()), kept.count(b"\n")
    longest = longest or (time.monotonic() - begin) / 2
    print(f"whole: {time.monotonic() - begin:.0f} s, {whole.batches} batches, {completions} completions, {rows} rows")
    while killed < kills or not _is_done(places[-1]):
        if not places or _is_done(places[-1]):
            places.append(folder / f"killed{len(places) + 1 if places else ''}")
        killed += life(places[-1], model, draw.uniform(0, longest) if killed < kills else None)
    bad = 0
    for place in places:
        found = Asked.of(place)
        again = sum(found.completions.values()) - len(found.completions)
        most = max(found.again_by_process.values())
        same = (place / "out.jsonl").read_bytes() == kept and _counts(place) == _counts(folder / "whole")
        bad |= not same or most > 1 or found.completions.keys() != whole.completions.keys()
        print(
            f"{place.name}: {'the same bytes' if same else 'OTHER BYTES'}; of {completions} completions {again} were "
            f"generated again, in {found.batches - whole.batches} batches, at most {most} of them by one process; "
            f"{len(found.again_by_process)} processes asked the model"
        )
    print(f"{killed} SIGKILLs, {time.monotonic() - begin:.0f} s in all")
    return bad


def _is_done(place: Path) -> bool:
    return (place / "out.jsonl").exists() and not (place / "out.jsonl.work").exists()


def _counts(place: Path) -> object:
    return json.loads((place / "out.counts.json").read_text())["steps"]


if __name__ == "__main__":
    where, folder_of_model, times, *rest = sys.argv[1:]
    raise SystemExit(main(Path(where), folder_of_model, int(times), float(rest[0]) if rest else None))
