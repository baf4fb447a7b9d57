"""Evaluates a model until it is killed, so many seconds after the engine's Nth call: `python evaluate_and_die.py MODEL
OUT N SECONDS`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lnlit.eval.runner import Settings
from lnlit.interfaces import (
    BatchReward,
    GenerationTask,
    Question,
    Reward,
    RewardRequest,
    RewardResult,
    RolloutRequest,
    RolloutSampling,
    TaskSampling,
)
from lnlit.rollout.native import NativeEngine
from lnlit.stages.evaluate import evaluate
from lnlit.thinking import Thinking

QUESTIONS, PER_ROUND, SAMPLES = 22, 4, 3


class Letters(BatchReward):
    """The share of lower-case letters."""

    def score_batch(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        texts = [request.completion for request in requests]
        return [RewardResult(sum(letter.islower() for letter in text) / max(len(text), 1)) for text in texts]


class Says(GenerationTask):
    """Asks for some numbers."""

    def __init__(self, questions: int = QUESTIONS, of: str = "say") -> None:
        self.questions_asked, self.of = questions, of

    def questions(self) -> Iterator[Question]:
        for n in range(self.questions_asked):
            yield Question(f"q{n}", [[{"role": "user", "content": f"{self.of} {n}"}]], {"answer": str(n)}, "ab"[n % 2])

    def rewards(self) -> Mapping[str, Reward]:
        return {"letters": Letters()}

    def sampling(self, thinking: Thinking | None) -> TaskSampling:
        return TaskSampling(SAMPLES, 6, 0.9) if thinking == "on" else TaskSampling(1, 6, 0.0)


class Counting(NativeEngine):
    """lnlit's decoder, which notes in a file how many completions were asked of it."""

    calls = 0

    def __init__(self, notes: Path) -> None:
        super().__init__(16, "float32", "cpu")
        self._notes = notes

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling):
        type(self).calls += 1
        with self._notes.open("a") as stream:
            stream.write(f"{len(requests)}\n")
        return super().generate(requests, sampling)


def run(model: str, out: Path, **settings) -> Path:
    settings = {"thinking": ["off", "on"], "settings": Settings(questions_per_round=PER_ROUND), **settings}
    tasks = settings.pop("tasks", [Says()])
    return evaluate([model], tasks, str(out), engine=Counting(out.with_suffix(".notes")), **settings)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def generated(out: Path) -> int:
    """The number of completions that were asked of the engine."""
    notes = out.with_suffix(".notes")
    return sum(map(int, notes.read_text().split())) if notes.exists() else 0


def answer_files(out: Path) -> list[Path]:
    return [
        file
        for file in sorted((out / "answers").rglob("*.jsonl"))
        if "verdicts" not in file.name and "seconds" not in file.name
    ]


if __name__ == "__main__":
    import evaluate_and_die  # under its own name: answers are gone on with by the same engine

    model, out, calls, seconds = sys.argv[1:]

    def die() -> None:
        while Counting.calls < int(calls):
            time.sleep(0.0002)
        time.sleep(float(seconds))
        os.kill(os.getpid(), signal.SIGKILL)

    Counting = evaluate_and_die.Counting
    threading.Thread(target=die, daemon=True).start()
    evaluate_and_die.run(model, Path(out))
