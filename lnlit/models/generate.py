"""Batched autoregressive decoding with a KV cache.

Shape suffixes: B batch rows, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder
from lnlit.models.kv_cache import KVCache
from lnlit.models.vocabulary import logits

#: Finished rows are removed from the batch when the others are no more than this fraction of it, because removing rows
#: copies the whole cache.
_COMPACT_BELOW = 0.75
_BLOCK = 256


@dataclass(frozen=True)
class Sampling:
    """Settings for picking tokens. Temperature 0 is greedy; `top_p` keeps the smallest set of tokens with at least that
    probability."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raises `UserError` for settings that are out of range."""
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise UserError(f"generate: needs temperature >= 0, 0 < top_p <= 1 and max_new_tokens >= 1, got {self}")


@dataclass
class Generation:
    """One continuation: new tokens (including the end token), their log-probabilities in nats, and "stop" or
    "length"."""

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
    on_token: Callable[[int, int], bool | None] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Generation]:
    """Continues each prompt (token ids; lengths may differ). `on_token(row, token)` is called as tokens appear and
    ends a row by returning True.

    Rows that finish leave the batch. A row's randomness depends only on its own seed: `seeds` has one per prompt, and
    by default they are derived from `sampling.seed` and the row's index. Raises `UserError` for an empty prompt, or if
    prompt plus continuation exceed the model's context.
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
    on_token: Callable[[int, int], bool | None] | None,
    seeds: Sequence[int] | None,
) -> list[Generation]:
    device = decoder.embed_tokens.weight.device
    done = [Generation() for _ in prompts]
    seeds = [_row_seed(sampling.seed, row) for row in range(len(prompts))] if seeds is None else seeds
    draws_BS = torch.stack(
        [torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    ).to(device)
    logits_BV, lengths_B, cache = _prefill(decoder, prompts, sampling.max_new_tokens)
    alive = list(range(len(prompts)))  # which prompt each row of the batch continues; -1 has finished
    for step in range(sampling.max_new_tokens):
        next_B, logprobs_B = _sample(logits_BV, draws_BS[:, step], sampling)
        for index, (row, token, logprob) in enumerate(zip(alive, next_B.tolist(), logprobs_B.tolist(), strict=True)):
            if row < 0:
                continue
            done[row].token_ids.append(token)
            done[row].logprobs.append(logprob)
            ended = on_token is not None and on_token(row, token)
            if ended or token in end_ids:
                done[row].finish_reason = "stop"
                alive[index] = -1
        stay = [index for index, row in enumerate(alive) if row >= 0]
        if not stay or step == sampling.max_new_tokens - 1:
            break
        if len(stay) <= _COMPACT_BELOW * len(alive):
            kept = torch.tensor(stay, device=device)
            cache.keep_rows(kept)
            alive = [alive[index] for index in stay]
            next_B, lengths_B, draws_BS = next_B[kept], lengths_B[kept], draws_BS[kept]
        logits_BV = _last_logits(decoder, next_B[:, None], lengths_B[:, None], cache, torch.zeros_like(lengths_B))
        lengths_B = lengths_B + 1
    return done


def _prefill(decoder: Decoder, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[Tensor, Tensor, KVCache]:
    """(logits after each prompt, prompt lengths, cache). Equal prompts, such as those of several samples, are computed
    once."""
    device = decoder.embed_tokens.weight.device
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    lengths_B = torch.tensor([len(prompt) for prompt in number], device=device)
    longest = int(lengths_B.max())
    cache = KVCache(decoder.spec, len(number), longest + new_tokens, _compute_dtype(decoder), device)
    tokens_BT = torch.zeros(len(number), longest, dtype=torch.long, device=device)
    for prompt, row in number.items():
        tokens_BT[row, : len(prompt)] = torch.tensor(prompt, device=device)
    positions_BT = torch.arange(longest, device=device).expand_as(tokens_BT)
    logits_BV = _last_logits(decoder, tokens_BT, positions_BT, cache, lengths_B - 1)
    if len(number) < len(prompts):
        rows = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=device)
        cache.keep_rows(rows)
        logits_BV, lengths_B = logits_BV[rows], lengths_B[rows]
    return logits_BV, lengths_B, cache


def _last_logits(decoder: Decoder, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, last_B: Tensor) -> Tensor:
    def head(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
        hidden_BD = hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        return logits(hidden_BD, weight_VD).float()

    return decoder(tokens_BT, positions_BT, attention=cache.at(positions_BT), read_out=head)


def _sample(logits_BV: Tensor, draws_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(next token, its log-probability under the sampling distribution before top-p), both [B].

    Each row inverts its cumulative distribution at one uniform random number, so rows do not depend on each other.
    """
    if sampling.temperature == 0:
        logprobs_B, next_B = logits_BV.log_softmax(-1).max(-1)
        return next_B, logprobs_B
    if sampling.temperature != 1:
        logits_BV = logits_BV / sampling.temperature
    largest_B1 = logits_BV.amax(-1, keepdim=True)
    weights_BV, order_BV = (logits_BV - largest_B1).exp_(), None
    normaliser_B1 = weights_BV.sum(-1, keepdim=True).double()
    if sampling.top_p < 1:  # sorting costs more than a small model's forward pass
        weights_BV, order_BV = weights_BV.sort(-1, descending=True)
        before_BV = weights_BV.cumsum(-1) - weights_BV
        weights_BV = weights_BV.masked_fill(before_BV >= sampling.top_p * normaliser_B1, 0.0)
    next_B1 = _choose(weights_BV, draws_B[:, None])
    next_B1 = next_B1 if order_BV is None else order_BV.gather(1, next_B1)
    logprobs_B1 = logits_BV.gather(1, next_B1) - largest_B1 - normaliser_B1.log()
    return next_B1[:, 0], logprobs_B1[:, 0].float()


def _choose(weights_BV: Tensor, draws_B1: Tensor) -> Tensor:
    """The index [B, 1] at which the cumulative weight exceeds the fraction `draws_B1` of the total. The block is found
    first, then the index within it.

    There are few block sums, so they are accumulated in fp64; a cumulative sum over the whole vocabulary in fp64 would
    be slow.
    """
    rest = -weights_BV.shape[1] % _BLOCK
    blocks_BNK = (nn.functional.pad(weights_BV, (0, rest)) if rest else weights_BV).unflatten(1, (-1, _BLOCK))
    cumulative_BN = blocks_BNK.sum(-1).double().cumsum(-1)
    target_B1 = draws_B1 * cumulative_BN[:, -1:]
    block_B1 = torch.searchsorted(cumulative_BN, target_B1, right=True).clamp_(max=cumulative_BN.shape[1] - 1)
    before_B1 = torch.where(block_B1 > 0, cumulative_BN.gather(1, (block_B1 - 1).clamp_(min=0)), 0.0)
    block_BK = blocks_BNK.gather(1, block_B1[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double()
    inside_BK = block_BK.cumsum(-1)
    place_B1 = torch.searchsorted(inside_BK, target_B1 - before_B1, right=True)
    # Rounding may carry a draw past the block's last token that can be chosen.
    last_B1 = _BLOCK - 1 - (block_BK.flip(1) > 0).double().argmax(1, keepdim=True)
    # The clamp is for logits of NaN: their log-probs say what is wrong, an index out of bounds would not.
    return (block_B1 * _BLOCK + torch.minimum(place_B1, last_B1)).clamp_(max=weights_BV.shape[1] - 1)


def _compute_dtype(decoder: Decoder) -> torch.dtype:
    weight = decoder.embed_tokens.weight
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _row_seed(seed: int, row: int) -> int:
    return (seed * 1_000_003 + row) % 2**63


def _check(decoder: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    if not prompts or not all(prompts):
        raise UserError("generate: a prompt is empty; give at least one token per prompt")
    sampling.check()
    needed, context = max(map(len, prompts)) + sampling.max_new_tokens, decoder.spec.context_length
    if needed > context:
        raise UserError(f"generate: prompt plus max_new_tokens is {needed} tokens, the model's context is {context}")
