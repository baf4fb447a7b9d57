"""Causal attention for many short documents on a CPU, by batched matrix products.

torch's flash attention for CPUs spends about a millisecond per document in its backward pass, however short the
document is. With documents of the length of chats, that is over a third of a training step. Here documents of similar
length are padded into one batch, so that attention is a few large products. Scores are recomputed in the backward pass
instead of stored.

Shape suffixes: T tokens of all documents, N documents, L padded length, H query heads, K key/value heads, d head size,
M = L * H / K query rows per key/value head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Longest document that is faster this way; beyond it, the quadratic scores cost more than flash attention's overhead.
MAX_LENGTH = 192
#: Documents are padded to multiples of this.
_STEP = 16


def buckets(starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Groups documents by padded length. Each group is (token index [N, L], True for tokens and False for padding [N,
    L])."""
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, length in zip(starts, lengths, strict=True):
        groups[-(-length // _STEP) * _STEP].append((start, length))
    made = []
    for padded, members in groups.items():
        first, count = (torch.tensor(column, device=device)[:, None] for column in zip(*members, strict=True))
        offset = torch.arange(padded, device=device)
        is_token = offset < count
        made.append(((first + offset).where(is_token, first), is_token))
    return made


def attend_short(
    q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, groups: list[tuple[Tensor, Tensor]], window: int | None = None
) -> Tensor:
    """Causal attention within each document of `groups`, [T, H, d]; zero at tokens that are in no group. With a
    `window`, each token attends to at most that many tokens, itself and those just before it."""
    return _ShortAttention.apply(q_THd, k_TKd, v_TKd, groups, window)  # type: ignore[return-value]


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THd: Tensor,
        k_TKd: Tensor,
        v_TKd: Tensor,
        groups: list[tuple[Tensor, Tensor]],
        window: int | None,
    ) -> Tensor:
        ctx.save_for_backward(q_THd, k_TKd, v_TKd)
        ctx.groups, ctx.window = groups, window
        out_THd = torch.zeros_like(q_THd)
        for index, is_token in groups:
            q, k, v = (_gather(x, index, k_TKd.shape[1]) for x in (q_THd, k_TKd, v_TKd))
            _scatter(out_THd, _weights(q, k, window) @ v, index, is_token)
        return out_THd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THd: Tensor) -> Any:  # type: ignore[override]
        q_THd, k_TKd, v_TKd = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q_THd, k_TKd, v_TKd))
        for index, is_token in ctx.groups:
            q, k, v = (_gather(x, index, k_TKd.shape[1]) for x in (q_THd, k_TKd, v_TKd))
            masked = grad_THd[index] * is_token[..., None, None]  # padding repeats a token; it must not count
            grad = _by_kv_head(masked, k_TKd.shape[1])
            weights = _weights(q, k, ctx.window)
            grad_weights = grad @ v.transpose(-1, -2)
            # torch's own derivative of softmax: one pass, in fp32 inside
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype) * q.shape[-1] ** -0.5
            _scatter(grad_q, grad_scores @ k, index, is_token)
            _scatter(grad_k, grad_scores.transpose(-1, -2) @ q, index, is_token)
            _scatter(grad_v, weights.transpose(-1, -2) @ grad, index, is_token)
        return grad_q, grad_k, grad_v, None, None


def _by_kv_head(x_NLHd: Tensor, kv_heads: int) -> Tensor:
    """Reshapes [N, L, H, d] to [N, K, M, d]: the queries of all query heads that share a key/value head, one after the
    other."""
    documents, length, heads, size = x_NLHd.shape
    grouped = x_NLHd.view(documents, length, kv_heads, heads // kv_heads, size)
    return grouped.permute(0, 2, 3, 1, 4).reshape(documents, kv_heads, -1, size)


def _gather(x_THd: Tensor, index_NL: Tensor, kv_heads: int) -> Tensor:
    return _by_kv_head(x_THd[index_NL], kv_heads)


def _scatter(out_THd: Tensor, x_NKMd: Tensor, index_NL: Tensor, is_token_NL: Tensor) -> None:
    """The inverse of `_gather`: writes each document's tokens and drops the padding."""
    documents, length = index_NL.shape
    kv_heads, size = x_NKMd.shape[1], x_NKMd.shape[3]
    x_NLHd = x_NKMd.view(documents, kv_heads, -1, length, size).permute(0, 3, 1, 2, 4)
    out_THd[index_NL[is_token_NL]] = x_NLHd.reshape(documents, length, -1, size)[is_token_NL]


def _weights(q_NKMd: Tensor, k_NKLd: Tensor, window: int | None) -> Tensor:
    """The softmax of the causal scores, [N, K, M, L]. Padding is at the end, so no token attends to it.

    These two passes over the scores dominate the time. Mask and scale are therefore part of the product, and softmax
    reads and writes the scores' own precision but sums in fp32.
    """
    length = k_NKLd.shape[2]
    hidden = q_NKMd.new_full((length, length), float("-inf")).triu_(1)
    if window is not None:
        hidden += torch.full_like(hidden, float("-inf")).tril_(-window)
    scores = torch.baddbmm(
        hidden.repeat(q_NKMd.shape[2] // length, 1),
        q_NKMd.flatten(0, 1),
        k_NKLd.flatten(0, 1).transpose(-1, -2),
        alpha=q_NKMd.shape[-1] ** -0.5,
    )
    return scores.softmax(-1).view(*q_NKMd.shape[:3], length)
