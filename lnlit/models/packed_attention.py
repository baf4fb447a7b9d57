"""Attention over a packed batch of documents, which may share tokens.

Shape suffixes: B batch rows, T tokens, H query heads, K key/value heads, d head size, E tokens of all documents, where
a shared token counts once for each document.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lnlit.interfaces import AttentionKernel, Segments
from lnlit.interfaces.layer import Attend


class AttentionContext(Protocol):
    """Provides the attention of each layer."""

    def layer(self, index: int) -> Attend: ...


class PackedAttention:
    """Attention within the documents of a packed batch, by one kernel. All layers share one instance, so that a
    compiled block is compiled only once."""

    def __init__(self, kernel: AttentionKernel, segments: Segments) -> None:
        self.kernel, self.segments = kernel, segments

    def layer(self, index: int) -> Attend:
        return self

    def __call__(self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, window: int | None = None) -> Tensor:
        return self.kernel.attend(q_BTHd, k_BTKd, v_BTKd, self.segments, window)


class SharedAttention(PackedAttention):
    """Packed attention for documents that share tokens (`TokenBatch.gather_index`). Everything except attention
    computes a shared token once.

    Attention is computed for each document as a whole, so any kernel can be used. The repeated work is small compared
    with the linears.
    """

    def __init__(self, kernel: AttentionKernel, segments: Segments, gather_index_E: Tensor, tokens: int) -> None:
        super().__init__(kernel, segments)
        self.gather_index_E = gather_index_E
        entries_E = torch.arange(len(gather_index_E), device=gather_index_E.device)
        self.first_T = entries_E.new_full((tokens,), len(gather_index_E)).scatter_reduce_(
            0, gather_index_E, entries_E, "amin"
        )

    def __call__(self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, window: int | None = None) -> Tensor:
        q, k, v = (_Read.apply(x.flatten(0, 1), self.gather_index_E)[None] for x in (q_BTHd, k_BTKd, v_BTKd))  # type: ignore
        out_EHd = super().__call__(q, k, v, window)[0]
        return out_EHd.index_select(0, self.first_T).view_as(q_BTHd)


class _Read(torch.autograd.Function):
    """Gathers rows of a tensor, with repetitions. The gradients of repeated rows are summed in fp32."""

    @staticmethod
    def forward(ctx: Any, x_THd: Tensor, gather_index_E: Tensor) -> Tensor:
        ctx.save_for_backward(gather_index_E)
        ctx.shape = x_THd.shape
        return x_THd.index_select(0, gather_index_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_EHd: Tensor) -> Any:  # type: ignore[override]
        (gather_index_E,) = ctx.saved_tensors
        wide = torch.promote_types(grad_EHd.dtype, torch.float32)
        sums_THd = grad_EHd.new_zeros(ctx.shape, dtype=wide).index_add_(0, gather_index_E, grad_EHd.to(wide))
        return sums_THd.to(grad_EHd.dtype), None
