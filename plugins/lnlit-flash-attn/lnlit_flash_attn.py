"""The variable-length kernel of the package flash-attn.

Shape suffixes: B rows, T tokens, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import AttentionKernel, Segments

_HALF = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256


class FlashAttnKernel(AttentionKernel):
    """FlashAttention-2 (Dao 2023) over packed documents: exact, without work across documents, for bf16 and fp16 on
    CUDA."""

    @classmethod
    def unavailable(cls) -> str | None:
        if not torch.cuda.is_available():
            return "flash-attn needs a CUDA GPU and torch sees none."
        if torch.cuda.get_device_capability() < (8, 0):
            return "flash-attn needs an Ampere GPU (compute capability 8.0) or newer."
        if find_spec("flash_attn") is None:
            return "flash-attn is not installed. Run: pip install --no-build-isolation 'lnlit-flash-attn[cuda]'"
        return None

    def attend(
        self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, segments: Segments, window: int | None = None
    ) -> Tensor:
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

        if q_BTHd.dtype not in _HALF or q_BTHd.shape[-1] > _LARGEST_HEAD:
            raise UserError(
                f"attention kernel 'flash_attn' takes bfloat16 or float16 and heads up to {_LARGEST_HEAD}, got "
                f"{q_BTHd.dtype} and {q_BTHd.shape[-1]}. Set trainer.precision to bf16-mixed or choose another kernel."
            )
        q, k, v = (x.flatten(0, 1) for x in (q_BTHd, k_BTKd, v_BTKd))
        bounds, longest = segments.cu_seqlens, segments.max_length
        seen = (-1 if window is None else window - 1, 0)
        out = flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest, causal=True, window_size=seen)
        return out.view(q_BTHd.shape)
