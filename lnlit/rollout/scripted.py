"""An engine that says what it is told to: for tests, and for trying rewards and recipes without a model."""

from __future__ import annotations

from collections.abc import Sequence

from lnlit.errors import UserError
from lnlit.interfaces import PolicyWeights, Rollout, RolloutEngine, RolloutRequest, RolloutSampling


class ScriptedEngine(RolloutEngine):
    """Each request is answered with one of `completions`, chosen by its seed; every token has the log-prob 0.

    Args:
        completions: token ids, each list one completion. One without an end token gets one; longer ones than a request
            allows are cut.
    """

    def __init__(self, completions: list[list[int]]) -> None:
        if not completions or not all(completions):
            raise UserError("ScriptedEngine.completions: expected at least one completion, each with at least a token.")
        self.completions = completions
        self._version: int | None = None
        self._context_length = 0

    def load_weights(self, weights: PolicyWeights) -> None:
        self._version = None
        for _ in weights.tensors:
            pass
        self._version, self._context_length = weights.version, weights.spec.context_length

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        if self._version is None:
            raise UserError("ScriptedEngine has no complete weights to generate with; load_weights comes first.")
        longest = max((len(request.prompt_ids) for request in requests), default=0) + sampling.max_new_tokens
        if requests and longest > self._context_length:
            raise UserError(f"prompt and completion need {longest} tokens, the context has {self._context_length}.")
        return [self._answer(request, sampling, self._version) for request in requests]

    def _answer(self, request: RolloutRequest, sampling: RolloutSampling, version: int) -> Rollout:
        script = self.completions[request.seed % len(self.completions)]
        end = next((at for at, token in enumerate(script) if token in sampling.end_ids), len(script))
        tokens = (*script[:end], *sampling.end_ids[:1]) if end == len(script) else tuple(script[: end + 1])
        tokens = tokens[: sampling.max_new_tokens]
        reason = "stop" if tokens[-1] in sampling.end_ids else "length"
        return Rollout(request.prompt_ids, tokens, (0.0,) * len(tokens), reason, version, request.seed)

    def close(self) -> None:
        self._version = None
