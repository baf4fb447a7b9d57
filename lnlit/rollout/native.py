"""lnlit's own decoder as a rollout engine: it has no dependency, runs every part, and samples the same tokens on every
machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from lnlit.errors import UserError
from lnlit.interfaces import (
    EngineMemory,
    EngineSize,
    PolicyWeights,
    Rollout,
    RolloutEngine,
    RolloutRequest,
    RolloutSampling,
)
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.device import accelerator
from lnlit.models.generate import Sampling, generate
from lnlit.models.weights import fill


class NativeEngine(RolloutEngine):
    """Batched decoding with a KV cache, by a copy of the policy. Finished completions leave their batch.

    Args:
        batch_size: Completions decoded together; more are faster and need more memory for their caches.
        dtype: The dtype of the copy's weights and cache.
        device: The device to generate on. Null is the accelerator if there is one.
    """

    def __init__(
        self, batch_size: int = 64, dtype: Literal["bfloat16", "float32"] = "bfloat16", device: str | None = None
    ) -> None:
        if batch_size < 1:
            raise UserError(f"NativeEngine.batch_size: expected a positive number, got {batch_size}")
        self.batch_size, self.dtype, self.device = batch_size, dtype, device
        self._decoder: Decoder | None = None
        self._version: int | None = None

    def load_weights(self, weights: PolicyWeights) -> None:
        self._version = None  # until all are in
        if self._decoder is None or self._decoder.spec != weights.spec:
            device = self.device or accelerator()
            self._decoder = build_decoder(weights.spec, device, getattr(torch, self.dtype))
            self._decoder.requires_grad_(False).eval()
        fill(self._decoder, weights.tensors, "the policy's weights")
        self._version = weights.version

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        if self._decoder is None or self._version is None:
            raise UserError("NativeEngine has no complete weights to generate with; load_weights comes first.")
        how = Sampling(sampling.max_new_tokens, sampling.temperature, sampling.top_p)
        # Equal lengths waste no steps on padding. The order is that of the lengths, so it does not depend on chance.
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt_ids))
        found: dict[int, Rollout] = {}
        with torch.autocast(self._decoder.embed_tokens.weight.device.type, enabled=False):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                prompts = [requests[index].prompt_ids for index in batch]
                seeds = [requests[index].seed for index in batch]
                results = generate(self._decoder, prompts, how, sampling.end_ids, seeds=seeds)
                for index, result in zip(batch, results, strict=True):
                    found[index] = Rollout(
                        requests[index].prompt_ids,
                        tuple(result.token_ids),
                        tuple(result.logprobs),
                        "stop" if result.finish_reason == "stop" else "length",
                        self._version,
                        requests[index].seed,
                    )
        return [found[index] for index in range(len(requests))]

    def memory(self, size: EngineSize) -> EngineMemory:
        """A copy of the model, and caches as long as the context for a whole batch."""
        item = getattr(torch, self.dtype).itemsize
        weights, sequence = (size.blocks + size.embeddings) * item, size.context_length * size.kv_elements * item
        return EngineMemory(1, weights, sequence, weights + self.batch_size * sequence, 0, self.batch_size)

    def close(self) -> None:
        self._decoder = self._version = None

    def sleep(self) -> None:
        self.close()
