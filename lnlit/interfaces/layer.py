"""Interfaces `attention` and `ffn`: the part that fills one slot of a block, and what a part declares about itself.

A part must define its constructor and `forward`; every other method has a default. The code that counts FLOPs, sizes
caches, shards, searches or saves models calls these methods, and never looks at a part's name or at the names of its
arguments. `args` are always the part's own arguments.

Shape suffixes: B batch rows, T tokens, D hidden, F inner channels of an FFN, H query heads, K key/value heads, d head
size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from lnlit.errors import UserError
from lnlit.specs import RopeSpec

if TYPE_CHECKING:
    from torch import Tensor

Args: TypeAlias = Mapping[str, Any]
#: Weights by their checkpoint names below the block, as "mlp.up_proj.weight" or "self_attn.k_proj.weight".
Weights: TypeAlias = "Mapping[str, Tensor]"
#: (the parent's weights, scores of its FFN's channels [F] or None) -> initial weights, without training. The weight of
#: `output_linear` may be left out, and is then zero until it is fitted.
Conversion: TypeAlias = "Callable[[Weights, Tensor | None], dict[str, Tensor]]"
#: The norm before fused FFNs. "own": each keeps its own, with the gain folded into its matrices. "last": all use that
#: of the last one, as in the FFN Fusion paper (equation 5).
Norm = Literal["own", "last"]


@dataclass(frozen=True)
class LayerContext:
    """Facts about the surrounding model that a part's constructor receives."""

    hidden_size: int
    layer_index: int
    rope: RopeSpec
    context_length: int
    norm_eps: float = 1e-5


class Attend(Protocol):
    """Softmax attention of one layer, which returns [B, T, H, d]. It hides the kernel, document boundaries and the KV
    cache from the layer.

    With a `window`, each token attends to at most that many tokens: itself and those just before it.
    """

    def __call__(self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, window: int | None = None) -> Tensor: ...


class SearchSpace(Protocol):
    """The sizes of smaller variants that a search wants to try. `Layer.smaller` turns them into arguments of its
    part."""

    def narrower(self, channels: int) -> Sequence[int]:
        """The numbers of channels to try for an FFN with `channels` of them, largest first."""
        ...

    def fewer_heads(self, heads: int) -> Sequence[int]:
        """The numbers of KV heads to try for a layer with `heads` of them, all divisors of `heads`."""
        ...


@dataclass(frozen=True)
class Parent:
    """The part of the parent model that a candidate replaces."""

    layer: type[Layer]
    args: Args


#: Earlier words of `Layer` -> what to write now.
NOW_CALLED = {
    "reads_channels": "output_linear",
    "conversion": "conversions, which returns functions to choose from",
    "as_matrix": "output_linear: a matrix in a part's place is fitted to its output",
}


class Layer:
    """What attention and FFN parts have in common. A part is also an `nn.Module` and is constructed as `(context,
    **args)`."""

    #: False if the part adds nothing to the residual stream: the block then has no norm for it and skips it.
    residual: ClassVar[bool] = True
    #: Linears that stack several checkpoint weights along dim 0, e.g. `{"gate_up_proj": ("gate_proj", "up_proj")}`.
    packed_weights: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: How many equal runs the rows of each packed weight are cut into. The stack has the first run of each weight, then
    #: the second of each, and so on, so that this many ranks, or a divisor of it, can share it evenly. A constructor
    #: may set it; 1 puts whole weights below each other.
    packed_runs: int = 1
    #: For a part that packs weights: the registry name of the part with the same arguments and function that stores
    #: them one by one, as checkpoints do. None if this part's own weights are those in checkpoints.
    stored_as: ClassVar[str | None] = None
    #: The inverse: the registry name of the part that packs this one's weights, if there is one.
    packed_as: ClassVar[str | None] = None
    #: Tensor-parallel style of each linear: "colwise" splits its outputs, "rowwise" its inputs and sums the results,
    #: "gathered" splits its outputs and puts them together again. A norm of each head is "per_head": whole, and each
    #: rank applies it to its own heads. All other modules are whole on every rank, and the run's log names them.
    tensor_parallel: ClassVar[Mapping[str, str]] = {}

    #: The linear whose result is the part's output, as "o_proj" or "down_proj". A search scores the channels of an FFN,
    #: which it reads, by what it makes of them. It fits the weight in a candidate, so that the candidate's output is as
    #: near to the parent's as can be. None: there is none; channels are not scored and nothing is fitted.
    output_linear: ClassVar[str | None] = None

    def __init_subclass__(cls, **settings: Any) -> None:
        """Raises `UserError` for a word of an earlier version, which nobody would read any more."""
        super().__init_subclass__(**settings)
        for old in NOW_CALLED.keys() & vars(cls).keys():
            raise UserError(f"{cls.__name__}.{old} is now called {NOW_CALLED[old]}")

    if TYPE_CHECKING:

        def __call__(self, *args: Any) -> Tensor: ...  # nn.Module's, which runs `forward`

    @classmethod
    def whole_units(cls, args: Args) -> Mapping[str, int]:
        """Counts that tensor parallelism must divide evenly among ranks without splitting a unit, e.g. `{"KV heads":
        8}`."""
        return {}

    @classmethod
    def flops(cls, args: Args, weights: int, attended: float) -> float:
        """FLOPs of one token's forward pass. `weights` is the number of elements in the part's matrices, and `attended`
        the mean number of tokens that a token attends to. The default of two FLOPs per weight is right for a part that
        multiplies by its matrices only."""
        return 2.0 * weights

    @classmethod
    def short_name(cls, args: Args) -> str | None:
        """A short name for these arguments, such as "kv2", for tables and `lnlit search`. It must differ for different
        arguments; a plugin's registry name is put before it. None stands for the registry name with all arguments."""
        return None

    @classmethod
    def smaller(cls, args: Args, space: SearchSpace) -> Iterable[Args]:
        """Arguments of smaller variants of this part for a search to try, largest first. Each of them needs
        `conversions` from this part."""
        return ()

    @classmethod
    def conversions(cls, args: Args, parent: Parent) -> Sequence[Conversion]:
        """Functions that compute this part's initial weights, for `args`, from those of `parent` without training. A
        search tries each and keeps the one that is nearest to the parent once `output_linear` is fitted, or the first
        of a part without one. No functions: it leaves the candidate out."""
        return ()


class AttentionLayer(Layer, ABC):
    """A part that mixes information across tokens."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        """Maps normed hidden states to the residual update, both [B, T, D]. `rope[d]` is (cos_BTd, sin_BTd), where d is
        the part's `rope_dim`."""

    @classmethod
    def kv_cache_shape(cls, args: Args) -> tuple[int, int] | None:
        """(KV heads, head size) that these arguments cache per token, or None if the layer caches nothing."""
        return None

    @classmethod
    def rope_dim(cls, args: Args) -> int | None:
        """The size of the rotary tables that `forward` reads, or None if it reads none. By default the head size of the
        KV cache."""
        shape = cls.kv_cache_shape(args)
        return shape[1] if shape else None


class FeedForwardLayer(Layer, ABC):
    """A part that processes each token independently."""

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps normed hidden states to the residual update, both [B, T, D]."""

    @classmethod
    def channels(cls, args: Args) -> int | None:
        """The number of inner channels, if FFNs of this kind can be fused; None if they cannot. A fused FFN has the sum
        of the channels (see `side_by_side` and `fuse`)."""
        return None

    @classmethod
    def side_by_side(cls, ffns: Sequence[Args]) -> Args:
        """The arguments of the single FFN that computes the sum of several FFNs of this kind."""
        raise NotImplementedError(f"{cls.__name__} has channels() but no side_by_side()")

    @classmethod
    def fuse(cls, ffns: Sequence[Weights], norm: Norm) -> dict[str, Tensor]:
        """The weights of the fused FFN, from the weights of the FFNs as checkpoints hold them. Inputs and result
        include the gain of the norm before the FFN, as "post_attention_layernorm.weight"."""
        raise NotImplementedError(f"{cls.__name__} has channels() but no fuse()")
