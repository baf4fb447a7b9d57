"""Sockets `attention` and `ffn`: what fills one slot of a block, and what a part knows about itself.

A part says nothing but its constructor and `forward` unless it wants more: everything else has a default, and whoever
counts, caches, splits, searches or writes parts asks them, as no other file knows a part by its name or its arguments.
`args` are always the part's own arguments, whatever they are called.

Shape suffixes: B batch rows, T tokens, D hidden, F inner channels of an FFN, H query heads, K key/value heads,
d head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from lnlit.specs import RopeSpec

if TYPE_CHECKING:
    from torch import Tensor

Args: TypeAlias = Mapping[str, Any]
#: Weights by their checkpoint names below the block, as "mlp.up_proj.weight" or "self_attn.k_proj.weight".
Weights: TypeAlias = "Mapping[str, Tensor]"
#: (the parent's weights, scores of its FFN's channels [F] or None) -> first weights, without training.
Conversion: TypeAlias = "Callable[[Weights, Tensor | None], dict[str, Tensor]]"
#: Which norm fused FFNs see. "own": each its own, the gains folded into the matrices. "last": all of them the last
#: one's, as in the FFN Fusion paper (equation 5).
Norm = Literal["own", "last"]


@dataclass(frozen=True)
class LayerContext:
    """What a part may know about the model around it."""

    hidden_size: int
    layer_index: int
    rope: RopeSpec
    context_length: int
    norm_eps: float = 1e-5


class Attend(Protocol):
    """Softmax attention of one layer, [B, T, H, d] out. Hides kernel, document boundaries and KV cache from it.

    With a `window` each token sees that many tokens at most, itself and those just before it.
    """

    def __call__(self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, window: int | None = None) -> Tensor: ...


class SearchSpace(Protocol):
    """What a search asks of every part, in sizes that a part may have: it says which ones are smaller."""

    def narrower(self, channels: int) -> Sequence[int]:
        """The numbers of channels to try in place of so many, largest first."""
        ...

    def fewer_heads(self, heads: int) -> Sequence[int]:
        """The numbers of KV heads to try in place of so many, all divisors of it."""
        ...


@dataclass(frozen=True)
class Parent:
    """The part whose place a candidate takes."""

    layer: type[Layer]
    args: Args


class Layer:
    """What attention and FFN parts share. A part is also an `nn.Module`, constructed as `(context, **args)`."""

    #: False: the part adds nothing to the residual stream, so the block gives it no norm and skips it.
    residual: ClassVar[bool] = True
    #: Linears that stack several checkpoint weights along dim 0, e.g. `{"gate_up_proj": ("gate_proj", "up_proj")}`.
    packed_weights: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: The registry name of the part with the same arguments and function whose weights a checkpoint holds, one by one,
    #: where this part packs them; None: this one's own.
    stored_as: ClassVar[str | None] = None
    #: The inverse: the registry name of the part that packs this one's weights, if there is one.
    packed_as: ClassVar[str | None] = None
    #: Tensor-parallel style of each linear: "colwise" splits its outputs, "rowwise" its inputs and sums the results,
    #: "gathered" splits its outputs and puts them together again. A norm of each head is "per_head": whole, and each
    #: rank applies it to its own heads. Others are whole on every rank, which a run tells.
    tensor_parallel: ClassVar[Mapping[str, str]] = {}

    if TYPE_CHECKING:

        def __call__(self, *args: Any) -> Tensor: ...  # nn.Module's, which runs `forward`

    @classmethod
    def whole_units(cls, args: Args) -> Mapping[str, int]:
        """What tensor-parallel ranks can only have whole and equally many of, e.g. `{"KV heads": 8}`."""
        return {}

    @classmethod
    def flops(cls, args: Args, weights: int, attended: float) -> float:
        """FLOPs of one token's forward pass. `weights` counts the elements of the part's matrices, and a token attends
        to `attended` tokens on average. By default two per weight, which is right where nothing else multiplies.
        """
        return 2.0 * weights

    @classmethod
    def short_name(cls, args: Args) -> str | None:
        """A name that tells these arguments apart from others, as "kv2", for tables and `lnlit search`. None: the
        registry name with all arguments.
        """
        return None

    @classmethod
    def smaller(cls, args: Args, space: SearchSpace) -> Iterable[Args]:
        """Arguments of the smaller variants of this part that a search should try, largest first. Each needs a
        `conversion` from this one.
        """
        return ()

    @classmethod
    def conversion(cls, args: Args, parent: Parent) -> Conversion | None:
        """How this part, with `args`, gets its first weights in the place of `parent`, without training; None: no way
        is known, and a search leaves the candidate out.
        """
        return None

    @classmethod
    def as_matrix(cls, args: Args) -> Callable[[Weights], Tensor] | None:
        """From this part's weights to the one matrix [D, D] that comes closest to it; None: no way is known."""
        return None


class AttentionLayer(Layer, ABC):
    """Mixes information across tokens."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        """Normed hidden states to the residual update, both [B, T, D]. `rope[d]` is (cos_BTd, sin_BTd) for the part's
        `rope_dim`.
        """

    @classmethod
    def kv_cache_shape(cls, args: Args) -> tuple[int, int] | None:
        """(KV heads, head size) cached per token for these arguments, or None when the layer caches nothing."""
        return None

    @classmethod
    def rope_dim(cls, args: Args) -> int | None:
        """The size of the rotary tables that `forward` reads, None for none. By default that of the cached heads."""
        shape = cls.kv_cache_shape(args)
        return shape[1] if shape else None


class FeedForwardLayer(Layer, ABC):
    """Acts on each token alone."""

    #: The linear that reads the inner channels, as "down_proj": a search scores them by what it makes of each. None:
    #: there is none, or channels cannot be scored.
    reads_channels: ClassVar[str | None] = None

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normed hidden states to the residual update, both [B, T, D]."""

    @classmethod
    def channels(cls, args: Args) -> int | None:
        """The number of inner channels of a part that can be fused: several side by side are one with the sum of their
        channels (`side_by_side`, `fuse`). None: it cannot be.
        """
        return None

    @classmethod
    def side_by_side(cls, ffns: Sequence[Args]) -> Args:
        """The arguments of the one FFN that computes the sum of several of this kind."""
        raise NotImplementedError(f"{cls.__name__} has channels() but no side_by_side()")

    @classmethod
    def fuse(cls, ffns: Sequence[Weights], norm: Norm) -> dict[str, Tensor]:
        """Weights of that FFN, from theirs as checkpoints hold them. Each has its norm's gain among them, as
        "post_attention_layernorm.weight", and so has the result.
        """
        raise NotImplementedError(f"{cls.__name__} has channels() but no fuse()")
