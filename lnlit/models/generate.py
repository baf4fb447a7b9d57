"""Batched autoregressive decoding with a KV cache.

Shape suffixes: B batch rows, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder
from lnlit.models.kv_cache import KVCache


@dataclass(frozen=True)
class Sampling:
    """How to pick tokens. Temperature 0 is greedy; `top_p` keeps the smallest set of tokens with that probability."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass
class Generation:
    """One continuation: new tokens (the end token included), their log-probabilities, and "stop" or "length"."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


@torch.no_grad()  # not inference mode: FSDP2's first forward pass cannot run in it
@torch.compiler.set_stance("force_eager")  # compiled blocks would recompile as the sequence grows
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    end_ids: Collection[int],
    on_token: Callable[[int, int], None] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Generation]:
    """Continue each prompt (token ids, any mix of lengths). `on_token(row, token)` is called as tokens appear.

    Rows that finish leave the batch. A row's randomness depends on its own seed alone: `seeds`, one per prompt, or by
    default `sampling.seed` and its index. Raises `UserError` for an empty prompt or when prompt plus continuation
    exceeds the model's context.
    """
    _check(decoder, prompts, sampling)
    was_training = decoder.training
    decoder.eval()
    try:
        return _decode(decoder, prompts, sampling, end_ids, on_token, seeds)
    finally:
        decoder.train(was_training)


def _decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    end_ids: Collection[int],
    on_token: Callable[[int, int], None] | None,
    seeds: Sequence[int] | None,
) -> list[Generation]:
    device = decoder.embed_tokens.weight.device
    done = [Generation() for _ in prompts]
    seeds = [_row_seed(sampling.seed, row) for row in range(len(prompts))] if seeds is None else seeds
    uniform = [torch.Generator().manual_seed(seed) for seed in seeds]
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = int(lengths_B.max())
    cache = KVCache(decoder.spec, len(prompts), longest + sampling.max_new_tokens, _compute_dtype(decoder), device)
    tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = torch.tensor(prompt, device=device)
    positions_BT = torch.arange(longest, device=device).expand_as(tokens_BT)
    alive, last_B = list(range(len(prompts))), lengths_B - 1
    for _ in range(sampling.max_new_tokens):
        logits_BV = _last_logits(decoder, tokens_BT, positions_BT, cache, last_B)
        draws_B = torch.tensor([torch.rand((), generator=uniform[row]).item() for row in alive], device=device)
        next_B, logprobs_B = _sample(logits_BV, draws_B, sampling)
        stay = []
        for index, (row, token, logprob) in enumerate(zip(alive, next_B.tolist(), logprobs_B.tolist(), strict=True)):
            done[row].token_ids.append(token)
            done[row].logprobs.append(logprob)
            if on_token is not None:
                on_token(row, token)
            if token in end_ids:
                done[row].finish_reason = "stop"
            else:
                stay.append(index)
        if not stay:
            break
        if len(stay) < len(alive):
            kept = torch.tensor(stay, device=device)
            cache.keep_rows(kept)
            next_B, lengths_B, alive = next_B[kept], lengths_B[kept], [alive[index] for index in stay]
        tokens_BT, positions_BT = next_B[:, None], lengths_B[:, None]
        lengths_B, last_B = lengths_B + 1, torch.zeros_like(lengths_B)
    return done


def _last_logits(decoder: Decoder, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, last_B: Tensor) -> Tensor:
    def head(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
        hidden_BD = hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        return torch.nn.functional.linear(hidden_BD, weight_VD).float()

    return decoder(tokens_BT, positions_BT, attention=cache.at(positions_BT), read_out=head)


def _sample(logits_BV: Tensor, draws_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(next token, its log-probability under the sampled distribution before top-p), both [B].

    One uniform number per row inverts the cumulative distribution, so a row's choice needs no other row's randomness.
    """
    if sampling.temperature == 0:
        logprobs_BV = logits_BV.log_softmax(-1)
        logprobs_B, next_B = logprobs_BV.max(-1)
        return next_B, logprobs_B
    logprobs_BV = (logits_BV / sampling.temperature).log_softmax(-1)
    probs_BV, order_BV = logprobs_BV.exp().sort(-1, descending=True)
    before_BV = probs_BV.cumsum(-1) - probs_BV
    probs_BV = probs_BV.masked_fill(before_BV >= sampling.top_p, 0.0)
    cumulative_BV = probs_BV.cumsum(-1)
    target_B1 = draws_B[:, None] * cumulative_BV[:, -1:]
    rank_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp_(max=logits_BV.shape[1] - 1)
    next_B1 = order_BV.gather(1, rank_B1)
    return next_B1[:, 0], logprobs_BV.gather(1, next_B1)[:, 0]


def _compute_dtype(decoder: Decoder) -> torch.dtype:
    weight = decoder.embed_tokens.weight
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _row_seed(seed: int, row: int) -> int:
    return (seed * 1_000_003 + row) % 2**63


def _check(decoder: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    if not prompts or not all(prompts):
        raise UserError("generate: a prompt is empty; give at least one token per prompt")
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_new_tokens < 1:
        raise UserError(f"generate: needs temperature >= 0, 0 < top_p <= 1 and max_new_tokens >= 1, got {sampling}")
    needed, context = max(map(len, prompts)) + sampling.max_new_tokens, decoder.spec.context_length
    if needed > context:
        raise UserError(f"generate: prompt plus max_new_tokens is {needed} tokens, the model's context is {context}")
