"""Runs a pipeline in forked children, which are killed at random moments: kill_curate.py FOLDER KILLS [WORKERS].

A fork starts in milliseconds what a new process would import for seconds. Prints how often it was killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from lnlit.curation.columns import Columns
from lnlit.curation.dedup import ExactDedup, MinHashDedup
from lnlit.curation.step import Step
from lnlit.data.sources import JsonlSource
from lnlit.stages.curate import curate

ROWS = 600
WORDS = ("ox", "fig", "oak", "elm", "ash", "yew", "bay", "fir", "sun", "dew", "ice", "fog")


class Slow(Step):
    """Takes a millisecond for a row, so that there is something to interrupt."""

    def each(self, row):
        time.sleep(0.001)
        return row


def write_rows(file: Path) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choice(WORDS) for _ in range(30)) for _ in range(ROWS * 3 // 4)]
    rows = [{"prompt": draw.choice(texts), "number": number} for number in range(ROWS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder: Path, workers: int) -> None:
    steps = [Slow(), ExactDedup(), Columns(required=["prompt"]), Slow(), MinHashDedup()]
    curate(JsonlSource(str(folder / "rows.jsonl")), steps, str(folder / "out.jsonl"), workers=workers, tasks=6)


def main(folder: Path, kills: int, workers: int) -> int:
    """Starts the pipeline until it ends, and kills it up to `kills` times; how often it was killed."""
    draw, killed, longest = random.Random(1), 0, 1.2 if workers == 1 else 2.0
    while True:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            run(folder, workers)
            os._exit(0)
        life = draw.uniform(0, longest) if killed < kills else 60
        end = time.monotonic() + life
        while time.monotonic() < end and not (ended := os.waitpid(child, os.WNOHANG))[0]:
            time.sleep(0.002)
        if ended[0]:
            if ended[1]:
                raise SystemExit(f"failed by itself: {(folder / 'log.txt').read_text()[-2000:]}")
            return killed
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1


if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_rows(place / "rows.jsonl")
    print(main(place, int(sys.argv[2]), int((sys.argv[3:] or ["1"])[0])))
