"""The divergence of a child's predictions from its parent's, when both use the same head.

The cross-entropy of a child's q = softmax(W h) with a distribution p is `log sum exp(W h) - (W' p) . h`. So the parent
leaves only its entropy and one vector per token, the mean W' p of its head's rows. A child then needs one head product
and one sum of exponentials, and no second tensor of the vocabulary's size is ever held. With the one-hot p of the true
next token, the mean is that token's row, and the formula gives the language-modelling loss.

The two terms nearly cancel, so logits are never rounded below fp32: half-precision operands are multiplied exactly and
accumulated in fp32.

Shape suffixes: N positions, D hidden, V vocabulary, C vocabulary entries of one tile, k most probable tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: Positions and vocabulary entries of one tile of logits: with 2 MiB in fp32 it stays in a CPU core's cache.
ROWS, COLUMNS = 512, 1024
#: Log normalisers of at most this size need no shift before the exponential: fp32 holds exp(-87) to exp(88).
_UNSHIFTED = 60.0


def log_normalizer(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """`logsumexp(hidden @ weight.T)` at each position, [N], in fp32 or wider. NaN if the hidden state is."""
    parts = [_log_normalizer(rows_ND, weight_VD) for rows_ND in hidden_ND.split(ROWS)]
    return torch.cat(parts)


def _log_normalizer(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    total_N = sum(logits_NC.exp_().sum(-1) for _, logits_NC in _tiles(hidden_ND, weight_VD))
    assert isinstance(total_N, Tensor)
    log_N = total_N.log()
    if log_N.abs().max() < _UNSHIFTED:
        return log_N
    peaks = [logits_NC.amax(-1) for _, logits_NC in _tiles(hidden_ND, weight_VD)]
    peak_N = torch.stack(peaks).amax(0)
    total_N = sum((logits_NC - peak_N[:, None]).exp_().sum(-1) for _, logits_NC in _tiles(hidden_ND, weight_VD))
    assert isinstance(total_N, Tensor)
    return peak_N + total_N.log()


def mean_weight(hidden_ND: Tensor, weight_VD: Tensor, log_normalizer_N: Tensor) -> Tensor:
    """The head's rows averaged under softmax(weight @ hidden), [N, D], computed in fp32 or wider."""
    means = []
    for rows_ND, log_N in zip(hidden_ND.split(ROWS), log_normalizer_N.split(ROWS), strict=True):
        mean_ND = torch.zeros(rows_ND.shape, dtype=log_N.dtype, device=log_N.device)
        for start, logits_NC in _tiles(rows_ND, weight_VD):
            probability_NC = logits_NC.sub_(log_N[:, None]).exp_()
            mean_ND.addmm_(probability_NC, weight_VD[start : start + COLUMNS].to(log_N.dtype))
        means.append(mean_ND)
    return torch.cat(means)


def cross_entropy(log_normalizer_N: Tensor, hidden_ND: Tensor, mean_ND: Tensor) -> Tensor:
    """The cross-entropy of p with softmax(weight @ hidden) in nats, [N]. `mean_ND` is the head's mean row under p.

    Subtracting the value for p's own hidden state, which is p's entropy, gives KL(p || q).
    """
    return log_normalizer_N - (mean_ND.to(log_normalizer_N.dtype) * hidden_ND).sum(-1)


def top_tokens(hidden_ND: Tensor, weight_VD: Tensor, k: int) -> Tensor:
    """The k most probable tokens at each position, [N, k]."""
    best = []
    for rows_ND in hidden_ND.split(ROWS):
        values, tokens = [], []
        for start, logits_NC in _tiles(rows_ND, weight_VD):
            top = logits_NC.topk(min(k, logits_NC.shape[-1]), dim=-1)
            values.append(top.values)
            tokens.append(top.indices + start)
        chosen_Nk = torch.cat(values, -1).topk(k, dim=-1).indices
        best.append(torch.cat(tokens, -1).gather(-1, chosen_Nk))
    return torch.cat(best)


def top_k_agreement(parent_Nk: Tensor, child_Nk: Tensor) -> Tensor:
    """The fraction of the parent's top k tokens that are among the child's, [N]."""
    return (parent_Nk[:, :, None] == child_Nk[:, None, :]).any(-1).float().mean(-1)


def _tiles(hidden_ND: Tensor, weight_VD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yields (first vocabulary entry, logits [N, C]) tile by tile, in fp32 or wider. All tiles share one buffer."""
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    wide_ND, buffer_NC = hidden_ND.to(dtype), torch.empty(0, dtype=dtype, device=hidden_ND.device)
    for start in range(0, len(weight_VD), COLUMNS):
        tile_CD = weight_VD[start : start + COLUMNS]
        if hidden_ND.dtype != dtype and hidden_ND.is_cuda:
            buffer_NC = torch.mm(hidden_ND, tile_CD.T, out_dtype=dtype)
        else:
            buffer_NC.resize_(len(wide_ND), len(tile_CD))
            with _bfloat16_products(hidden_ND.dtype == weight_VD.dtype == torch.bfloat16):
                torch.mm(wide_ND, tile_CD.to(dtype).T, out=buffer_NC)
        yield start, buffer_NC


@contextmanager
def _bfloat16_products(enabled: bool) -> Iterator[None]:
    """Computes fp32 products on the CPU's bfloat16 units: three times faster, and exact if the operands were
    bfloat16."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    if enabled:
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
