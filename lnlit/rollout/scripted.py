"""An engine with scripted answers: for tests, and for trying out rewards and recipes without a large model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lnlit.errors import UserError
from lnlit.interfaces import (
    IGNORE,
    PolicyWeights,
    Rollout,
    RolloutEngine,
    RolloutRequest,
    RolloutSampling,
    TokenBatch,
)
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.device import accelerator
from lnlit.models.weights import fill
from lnlit.rollout.log_probs import token_log_probs


class ScriptedEngine(RolloutEngine):
    """Each request is answered with one of `completions`, chosen by its seed whatever the sampling settings; the
    log-probs are those of the policy.

    Args:
        completions: Token ids, each list one completion. One without an end token gets one; longer ones than a request
            allows are cut.
    """

    def __init__(self, completions: list[list[int]]) -> None:
        if not completions or not all(completions):
            raise UserError("ScriptedEngine.completions: expected at least one completion, each with at least a token.")
        self.completions = completions
        self._decoder: Decoder | None = None
        self._version: int | None = None

    def load_weights(self, weights: PolicyWeights) -> None:
        self._version = None
        if self._decoder is None or self._decoder.spec != weights.spec:
            self._decoder = build_decoder(weights.spec, accelerator(), torch.float32).requires_grad_(False).eval()
        fill(self._decoder, weights.tensors, "the policy's weights")
        self._version = weights.version

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        if self._decoder is None or self._version is None:
            raise UserError("ScriptedEngine has no complete weights to generate with; load_weights comes first.")
        longest = max((len(request.prompt_ids) for request in requests), default=0) + sampling.max_new_tokens
        context = self._decoder.spec.context_length
        if requests and longest > context:
            raise UserError(f"prompt and completion need {longest} tokens, the context has {context}.")
        return [self._answer(self._decoder, request, sampling, self._version) for request in requests]

    def _answer(self, decoder: Decoder, request: RolloutRequest, sampling: RolloutSampling, version: int) -> Rollout:
        script = self.completions[request.seed % len(self.completions)]
        end = next((at for at, token in enumerate(script) if token in sampling.end_ids), len(script))
        tokens = (*script[:end], *sampling.end_ids[:1]) if end == len(script) else tuple(script[: end + 1])
        tokens = tokens[: sampling.max_new_tokens]
        reason = "stop" if tokens[-1] in sampling.end_ids else "length"
        logprobs = _log_probs(decoder, request.prompt_ids, tokens, sampling.temperature or 1.0)
        return Rollout(request.prompt_ids, tokens, logprobs, reason, version, request.seed)

    def close(self) -> None:
        self._decoder = self._version = None


@torch.no_grad()
def _log_probs(
    decoder: Decoder, prompt: Sequence[int], completion: Sequence[int], temperature: float
) -> tuple[float, ...]:
    device = decoder.embed_tokens.weight.device
    tokens = [*prompt, *completion[:-1]]
    labels = [IGNORE] * (len(prompt) - 1) + [*completion]
    rows = [torch.tensor([row], device=device) for row in (tokens, labels, range(len(tokens)))]
    with torch.autocast(device.type, enabled=False):
        found = token_log_probs(decoder, TokenBatch(rows[0], rows[1], rows[2], [len(tokens)]), temperature)
    return tuple(found.log_probs_N.tolist())
