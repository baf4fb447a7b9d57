"""Sockets `attention` and `ffn`: what fills one slot of a block.

Shape suffixes: B batch rows, T tokens, D hidden, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lnlit.specs import RopeSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerContext:
    """What a part may know about the model around it."""

    hidden_size: int
    layer_index: int
    rope: RopeSpec
    context_length: int


class Attend(Protocol):
    """Softmax attention of one layer, [B, T, H, d] out. Hides kernel, document boundaries and KV cache from it."""

    def __call__(self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor) -> Tensor: ...


class _Slot:
    """What attention and FFN parts share. A part is also an `nn.Module`, constructed as `(context, **args)`."""

    #: False: the part adds nothing to the residual stream, so the block gives it no norm and skips it.
    residual: ClassVar[bool] = True
    #: Linears that stack several checkpoint weights along dim 0, e.g. `{"gate_up_proj": ("gate_proj", "up_proj")}`.
    packed_weights: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Tensor-parallel style of each linear: "colwise" splits its outputs, "rowwise" its inputs and sums the results,
    #: "gathered" splits its outputs and puts them together again. Others are whole on every rank, which a run tells.
    tensor_parallel: ClassVar[Mapping[str, str]] = {}

    if TYPE_CHECKING:

        def __call__(self, *args: Any) -> Tensor: ...  # nn.Module's, which runs `forward`


class AttentionLayer(_Slot, ABC):
    """Mixes information across tokens."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        """Normed hidden states to the residual update, both [B, T, D]. `rope[head_dim]` is (cos_BTd, sin_BTd)."""

    @classmethod
    def kv_cache_shape(cls, args: Mapping[str, Any]) -> tuple[int, int] | None:
        """(KV heads, head size) cached per token for these arguments, or None when the layer caches nothing."""
        return None


class FeedForwardLayer(_Slot, ABC):
    """Acts on each token alone."""

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normed hidden states to the residual update, both [B, T, D]."""
