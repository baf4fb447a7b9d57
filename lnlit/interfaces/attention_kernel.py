"""Interface `attention_kernel`: an implementation of causal attention within documents.

The kernel is chosen at run time and is never part of a spec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Document boundaries of a packed [B, T] batch, whose B * T tokens are counted row by row. No document spans two
    rows.

    `lengths` are Python integers, so that a loop on the CPU needs no synchronisation. `cu_seqlens` (int32 [N + 1], on
    the batch's device) is the form that variable-length GPU kernels take. `max_length` is the longest length rounded up
    to a power of two, so that compiled blocks see few different values.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    max_length: int


class AttentionKernel(ABC):
    """Causal softmax attention that never crosses a document boundary, scaled by 1/sqrt(d)."""

    @classmethod
    def unavailable(cls) -> str | None:
        """The reason why this kernel cannot run on this machine, or None if it can."""
        return None

    @abstractmethod
    def attend(
        self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, segments: Segments, window: int | None = None
    ) -> Tensor:
        """Returns [B, T, H, d]. Query head h reads key/value head h // (H / K). With a `window`, each token attends to
        at most that many tokens: itself and those just before it."""
