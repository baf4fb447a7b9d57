"""A mock of torch's variable-length attention: the CUDA ops get an implementation on the CPU, so that what is compiled
around them can be tested without a GPU. Slow, and nothing is learned of the real kernel.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from lnlit.models.kernels import VarlenKernel


def install(patch: pytest.MonkeyPatch) -> None:
    """`VarlenKernel` can run here until `patch` is undone. The ops stay registered; nothing else calls them."""
    patch.setattr(VarlenKernel, "unavailable", classmethod(lambda cls: None))
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)


def _spans(bounds: Tensor, longest: int) -> list[slice]:
    spans = [slice(start, stop) for start, stop in pairwise(bounds.tolist())]
    assert max(span.stop - span.start for span in spans) <= longest, "the kernel would leave tokens out"
    return spans


def _probabilities(q_THd: Tensor, k_THd: Tensor) -> Tensor:
    """[H, T, S], causal."""
    scores_HTS = torch.einsum("thd,shd->hts", q_THd, k_THd) * q_THd.shape[-1] ** -0.5
    future_TS = torch.ones(scores_HTS.shape[1:], dtype=torch.bool).triu(1)
    return scores_HTS.masked_fill(future_TS, -torch.inf).softmax(-1)


def _per_query_head(x_TKd: Tensor, heads: int) -> Tensor:
    return x_TKd.float().repeat_interleave(heads // x_TKd.shape[1], 1)


def _forward(q, k, v, bounds, _bounds_k, longest, _longest_k, *args, **kwargs):
    out, heads = torch.zeros_like(q), q.shape[1]
    for span in _spans(bounds, longest):
        p_HTS = _probabilities(q[span].float(), _per_query_head(k[span], heads))
        out[span] = torch.einsum("hts,shd->thd", p_HTS, _per_query_head(v[span], heads)).to(q.dtype)
    return out, q.new_zeros(heads, len(q), dtype=torch.float32), torch.zeros(2, dtype=torch.uint64)


def _backward(grad, q, k, v, out, lse, bounds, _bounds_k, longest, *args, **kwargs):
    heads, grads = q.shape[1], [torch.zeros(x.shape) for x in (q, k, v)]
    for span in _spans(bounds, longest):
        g_THd, q_THd = grad[span].float(), q[span].float()
        k_THd, v_THd = (_per_query_head(x[span], heads) for x in (k, v))
        p_HTS = _probabilities(q_THd, k_THd)
        over_p_HTS = torch.einsum("thd,shd->hts", g_THd, v_THd)
        over_s_HTS = p_HTS * (over_p_HTS - (p_HTS * over_p_HTS).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        grads[0][span] = torch.einsum("hts,shd->thd", over_s_HTS, k_THd)
        for found, expanded in (
            (grads[1], torch.einsum("hts,thd->shd", over_s_HTS, q_THd)),
            (grads[2], torch.einsum("hts,thd->shd", p_HTS, g_THd)),
        ):
            found[span] = expanded.unflatten(1, (k.shape[1], -1)).sum(2)
    return tuple(found.to(x.dtype) for found, x in zip(grads, (q, k, v), strict=True))
