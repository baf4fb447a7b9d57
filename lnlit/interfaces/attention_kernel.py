"""Socket `attention_kernel`: how causal attention within documents is computed.

A runtime choice, never part of a spec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Document boundaries of a packed [B, T] batch, over its B*T tokens row by row. No document spans two rows.

    `lengths` are Python integers so that a CPU loop needs no synchronisation; `cu_seqlens` (int32 [N + 1], on the
    batch's device) is what variable-length GPU kernels take. `max_length` is at least the longest, and a power of two:
    compiled blocks see few values.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    max_length: int


class AttentionKernel(ABC):
    """Causal softmax attention that never crosses a document boundary, scaled by 1/sqrt(d)."""

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this kernel cannot run on this machine, or None when it can."""
        return None

    @abstractmethod
    def attend(
        self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, segments: Segments, window: int | None = None
    ) -> Tensor:
        """Returns [B, T, H, d]. Query head h reads key/value head h // (H / K). With a `window` each token sees that
        many tokens at most, itself and those just before it.
        """
