"""Generates rows and writes down what is generated: `python generate_until_killed.py MODEL PROMPTS OUT LOG`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lnlit.data.sources import JsonlSource
from lnlit.interfaces import BatchReward, RewardRequest, RewardResult, Rollout, RolloutRequest, RolloutSampling
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.sampler import Weighted
from lnlit.sampling.settings import Sampling
from lnlit.stages.generate import Rounds, generate

PROMPTS_PER_ROUND, SAMPLES = 3, 4


class Letters(BatchReward):
    """The share of lower-case letters."""

    def score_batch(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        texts = [request.completion for request in requests]
        return [RewardResult(sum(letter.islower() for letter in text) / max(len(text), 1)) for text in texts]


class Logged(NativeEngine):
    """Writes the seeds of its requests into a file, in front of the work."""

    def __init__(self, log: str) -> None:
        super().__init__(16, "float32", "cpu")
        self._log = log

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        self._write("".join(f"{request.seed}\n" for request in requests))
        found = super().generate(requests, sampling)
        time.sleep(0.05)  # so that some die here
        return found

    def _write(self, text: str) -> None:
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def run(model: str, prompts: str, out: str, log: str) -> Path:
    return generate(
        model,
        JsonlSource(prompts),
        out,
        [Weighted(Letters(), name="letters")],
        Logged(log),
        Sampling(SAMPLES, 6, temperature=0.8, top_p=0.9),
        ["on", "off"],
        rounds=Rounds(PROMPTS_PER_ROUND),
    )


if __name__ == "__main__":
    import generate_until_killed  # under its own name: a result is gone on with by the same reward

    generate_until_killed.run(*sys.argv[1:])
