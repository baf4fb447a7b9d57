"""An engine that generates completions with the policy's weights."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from lnlit.errors import UserError
from lnlit.interfaces import PolicyWeights, Rollout, RolloutEngine, RolloutRequest, RolloutSampling


class Example(RolloutEngine):
    """Samples every token uniformly from the vocabulary. Replace `_answer` by calls to your engine."""

    def __init__(self) -> None:
        self.vocabulary, self.context, self.version = 0, 0, None

    def load_weights(self, weights: PolicyWeights) -> None:
        self.version = None  # after an error no completion comes from a mixture
        for _name, _tensor in weights.tensors:
            pass  # hand it to the engine
        self.vocabulary, self.context = weights.spec.vocab_size, weights.spec.context_length
        self.version = weights.version

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        if self.version is None:
            raise UserError("there are no complete weights to generate with; load_weights comes first")
        for request in requests:
            if len(request.prompt_ids) + sampling.max_new_tokens > self.context:
                raise UserError(f"a prompt of {len(request.prompt_ids)} tokens leaves the context no room")
        return [self._answer(request, sampling, self.version) for request in requests]

    def _answer(self, request: RolloutRequest, sampling: RolloutSampling, version: int) -> Rollout:
        drawn, tokens = random.Random(request.seed), []
        while len(tokens) < sampling.max_new_tokens and not (tokens and tokens[-1] in sampling.end_ids):
            tokens.append(drawn.randrange(self.vocabulary))
        logprobs = (-math.log(self.vocabulary),) * len(tokens)
        reason = "stop" if tokens[-1] in sampling.end_ids else "length"
        return Rollout(request.prompt_ids, tuple(tokens), logprobs, reason, version, request.seed)

    def close(self) -> None:
        self.version = None
