"""Annotates prompts until it is killed: `python annotate_and_die.py MODEL PROMPTS OUT ROUNDS`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from lnlit.data.sources import JsonlSource
from lnlit.interfaces import BatchReward, RewardRequest, RewardResult
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.settings import Sampling
from lnlit.stages.annotate import annotate


class Letters(BatchReward):
    """The share of lower-case letters; kills its process after `rounds`."""

    def __init__(self, rounds: int | None = None) -> None:
        self._rounds = rounds

    def score_batch(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        if self._rounds is not None:
            self._rounds -= 1
            if self._rounds < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        texts = [request.completion for request in requests]
        return [RewardResult(sum(letter.islower() for letter in text) / max(len(text), 1)) for text in texts]


def run(model: str, prompts: str, out: str, reward: Letters) -> None:
    engine = NativeEngine(16, "float32", "cpu")
    settings = {"sampling": Sampling(4, 6), "pass_threshold": 0.2, "prompts_per_round": 3, "thinking": "off"}
    annotate(model, JsonlSource(prompts), reward, out, engine, **settings)


if __name__ == "__main__":
    import annotate_and_die  # under its own name: a result is gone on with by the same reward

    model, prompts, out, rounds = sys.argv[1:]
    run(model, prompts, out, annotate_and_die.Letters(int(rounds)))
