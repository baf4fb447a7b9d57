"""An engine that answers as a function of the conversation, for steps that ask a model."""

from __future__ import annotations

import re
from pathlib import Path

from lnlit.curation.model import Model
from lnlit.interfaces import Rollout, RolloutEngine
from lnlit.sampling.settings import Sampling


class Talking(RolloutEngine):
    """Answers with the text that `answers` has for the first pattern found in the conversation. Of a list, the seed
    chooses one. `{n}` in an answer is the pattern's first group. An answer None is an error, and one that ends in `...`
    is cut off. Every request is appended to `log`."""

    def __init__(self, answers: dict[str, str | list[str | None] | None], log: str | None = None) -> None:
        self.answers, self._log = answers, log

    needs_weights = False  # type: ignore[assignment]

    def load_weights(self, weights):
        raise AssertionError("it has a model of its own")

    def generate(self, requests, sampling):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        text = "\n".join(f"{message['role']}: {message['content']}" for message in request.messages)
        if self._log:
            with Path(self._log).open("a") as stream:
                stream.write(f"{request.seed}\n")
        for pattern, answer in self.answers.items():
            if found := re.search(pattern, text, re.S):
                chosen = answer[request.seed % len(answer)] if isinstance(answer, list) else answer
                if chosen is None:
                    return Rollout((), (), (), "error", 0, request.seed, "", 0, "timed_out: slow")
                filled = chosen.replace("{n}", found[1] if found.groups() else "")
                reason = "length" if filled.endswith("...") else "stop"
                return Rollout((), (), (), reason, 0, request.seed, filled, len(filled.split()))
        raise AssertionError(f"nothing to say to {text}")

    def close(self):
        pass


def model(answers, samples=1, thinking=None, log=None, seed=0):
    settings = Sampling(samples_per_prompt=samples, seed=seed)
    return Model(engine=Talking(answers, log), sampling=settings, thinking=thinking)
