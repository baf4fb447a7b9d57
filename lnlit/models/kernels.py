"""Attention kernels, which compute the same result and are chosen at run time by hardware.

Shape suffixes: B batch rows, T tokens, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import AttentionKernel, Segments
from lnlit.models.causal_attention import causal_attention
from lnlit.models.device import has_cuda
from lnlit.models.short_attention import MAX_LENGTH, attend_short, buckets


def make_segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """Builds segments from the documents' lengths, row by row.

    The number of documents and the longest length differ from batch to batch. The former is marked as dynamic for
    torch.compile and the latter is rounded up, because compiled blocks would otherwise be recompiled.
    """
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    torch._dynamo.maybe_mark_dynamic(bounds, 0)
    return Segments(tuple(lengths), bounds, 1 << (max(lengths) - 1).bit_length())


def select_kernel(name: str, device_type: str) -> AttentionKernel:
    """The kernel called `name`; "auto" is the fastest built-in one for the device: sdpa on a CPU, varlen on CUDA.

    Raises `UserError` with the reason if the kernel cannot run here.
    """
    if name == "auto":
        name = "varlen" if device_type == "cuda" and VarlenKernel.unavailable() is None else "sdpa"
    kernel = registry.get("attention_kernel", name)
    if reason := kernel.unavailable():
        able = [n for n in registry.names("attention_kernel") if _can_run(n)]
        raise UserError(f"attention kernel {name!r} cannot run here: {reason} Available: {', '.join(['auto', *able])}.")
    return kernel()


def _can_run(name: str) -> bool:
    try:
        return registry.get("attention_kernel", name).unavailable() is None
    except UserError:  # a broken plugin is not a choice
        return False


class SDPAKernel(AttentionKernel):
    """torch's scaled_dot_product_attention, called once per document, so no work is done across documents and no mask
    is needed.

    On a CPU this is three to five times faster than one call with a block-diagonal mask. For training on short
    documents on a CPU, `attend_short` is used instead.
    """

    def __init__(self) -> None:
        self._grouped: tuple[Segments, Any] | None = None

    @torch.compiler.disable  # a data-dependent loop: compiled blocks break their graph here
    def attend(
        self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, segments: Segments, window: int | None = None
    ) -> Tensor:
        rows, tokens = q_BTHd.shape[:2]
        flat = [x.reshape(rows * tokens, *x.shape[2:]) for x in (q_BTHd, k_BTKd, v_BTKd)]
        trains = torch.is_grad_enabled() and any(x.requires_grad for x in flat)
        if trains and not q_BTHd.is_cuda and min(segments.lengths) <= MAX_LENGTH:
            return self._attend_mixed(*flat, segments, window).view(q_BTHd.shape)  # type: ignore
        if segments.lengths == (tokens,) * rows:  # every row is one document
            return causal_attention(q_BTHd, k_BTKd, v_BTKd, window)
        parts = [x[None].split(segments.lengths, dim=1) for x in flat]
        return torch.cat([causal_attention(q, k, v, window) for q, k, v in zip(*parts, strict=True)], dim=1).view(
            q_BTHd.shape
        )

    def _attend_mixed(
        self, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, segments: Segments, window: int | None
    ) -> Tensor:
        """Computes short documents in batches and each long document by itself."""
        if self._grouped is None or self._grouped[0] is not segments:  # the layers of a batch share the grouping
            spans = list(zip(accumulate(segments.lengths, initial=0), segments.lengths, strict=False))
            short = [(start, length) for start, length in spans if length <= MAX_LENGTH]
            long = [(start, length) for start, length in spans if length > MAX_LENGTH]
            self._grouped = segments, (buckets(*zip(*short, strict=True), q_THd.device), long)  # type: ignore
        groups, long = self._grouped[1]
        out_THd = attend_short(q_THd, k_TKd, v_TKd, groups, window)
        if not long:
            return out_THd
        pieces, done = [], 0
        for start, length in long:
            document = slice(start, start + length)
            pieces += [
                out_THd[done:start],
                causal_attention(q_THd[None, document], k_TKd[None, document], v_TKd[None, document], window)[0],
            ]
            done = start + length
        return torch.cat([*pieces, out_THd[done:]])


class FlexKernel(AttentionKernel):
    """torch's FlexAttention with a block mask at document boundaries, compiled. CUDA only: it has no CPU backward."""

    @classmethod
    def unavailable(cls) -> str | None:
        return None if has_cuda() else "FlexAttention has no backward pass without CUDA."

    def __init__(self) -> None:
        self._masked: tuple[Segments, dict[int | None, Any]] | None = None

    def attend(
        self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, segments: Segments, window: int | None = None
    ) -> Tensor:
        q, k, v = (x.reshape(1, -1, *x.shape[2:]).transpose(1, 2) for x in (q_BTHd, k_BTKd, v_BTKd))
        mask = self._mask(segments, q.shape[2], window)  # type: ignore
        grouped = q.shape[1] != k.shape[1]
        # By default torch uses its decoding kernel below 128 tokens, which cannot do groups of three query heads.
        out = _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=grouped, kernel_options={"BACKEND": "TRITON"})
        return out.transpose(1, 2).reshape(q_BTHd.shape)

    @torch.compiler.disable
    def _mask(self, segments: Segments, total: int, window: int | None) -> Any:
        """The block mask of a batch, shared by all layers with the same window."""
        from lnlit.models.document_mask import document_mask  # FlexAttention takes a second to import

        if self._masked is None or self._masked[0] is not segments:
            self._masked = (segments, {})
        masks = self._masked[1]
        if window not in masks:
            masks[window] = document_mask(segments, total, window)
        return masks[window]


@cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


class VarlenKernel(AttentionKernel):
    """torch's built-in variable-length flash attention. CUDA with bf16 or fp16 only."""

    @classmethod
    def unavailable(cls) -> str | None:
        if not has_cuda():
            return "torch.nn.attention.varlen has no kernel without CUDA."
        return None if torch.cuda.get_device_capability() >= (8, 0) else "it needs compute capability 8.0 or later."

    def attend(
        self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, segments: Segments, window: int | None = None
    ) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        if q_BTHd.dtype == torch.float32:  # the kernel is half-precision; exact fp32 goes through SDPA
            return SDPAKernel().attend(q_BTHd, k_BTKd, v_BTKd, segments, window)  # type: ignore
        q, k, v = (x.flatten(0, 1) for x in (q_BTHd, k_BTKd, v_BTKd))
        bounds, longest = segments.cu_seqlens, segments.max_length
        grouped = q.shape[1] != k.shape[1]
        before = -1 if window is None else window - 1
        out = varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=(before, 0), enable_gqa=grouped)
        assert isinstance(out, Tensor)  # a tuple only when the log-sum-exp is asked for as well
        return out.view(q_BTHd.shape)
