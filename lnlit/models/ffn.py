"""Gated feed-forward layers. Shape suffixes: B rows, T tokens, D hidden, F intermediate, R runs of C channels each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.functional import silu

from lnlit.errors import UserError
from lnlit.interfaces import FeedForwardLayer, LayerContext
from lnlit.interfaces.layer import Args, Conversion, Norm, Parent, SearchSpace, Weights
from lnlit.models.surgery import fuse_ffns, narrow_ffn


class GatedFeedForward(nn.Module, FeedForwardLayer):
    """`down(activation(gate(x)) * up(x))` of any width. A subclass defines `forward`.

    The methods below hold for any activation: channels can be removed one by one, and several such layers side by side
    equal one wide layer (FFN Fusion, Bercovich et al. 2025, Theorem 3.1).
    """

    tensor_parallel = {"gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise"}
    output_linear = "down_proj"

    def __init__(self, context: LayerContext, *, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        _check_width(context, intermediate_size)
        self.gate_proj = nn.Linear(context.hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(context.hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, context.hidden_size, bias=bias)

    @classmethod
    def whole_units(cls, args: Args) -> Mapping[str, int]:
        return {"channels": args["intermediate_size"]}

    @classmethod
    def short_name(cls, args: Args) -> str:
        return f"i{args['intermediate_size']}"

    @classmethod
    def smaller(cls, args: Args, space: SearchSpace) -> Iterator[Args]:
        return ({**args, "intermediate_size": width} for width in space.narrower(args["intermediate_size"]))

    @classmethod
    def conversions(cls, args: Args, parent: Parent) -> Sequence[Conversion]:
        """The channels of any gated layer that is at least as wide and has biases or none as this one does: the
        matrices are the same, whatever stands between them.
        """
        width = args["intermediate_size"]
        if not issubclass(parent.layer, GatedFeedForward) or width > parent.args["intermediate_size"]:
            return ()
        if bool(args.get("bias")) != bool(parent.args.get("bias")):
            return ()
        if width == parent.args["intermediate_size"]:
            return (lambda weights, scores_F: dict(weights),)
        return (lambda weights, scores_F: narrow_ffn(weights, scores_F, width),)

    @classmethod
    def channels(cls, args: Args) -> int:
        return args["intermediate_size"]

    @classmethod
    def side_by_side(cls, ffns: Sequence[Args]) -> Args:
        biased = {"bias": True} if any(args.get("bias") for args in ffns) else {}
        return {"intermediate_size": sum(args["intermediate_size"] for args in ffns), **biased}

    @classmethod
    def fuse(cls, ffns: Sequence[Weights], norm: Norm) -> dict[str, Tensor]:
        return fuse_ffns(ffns, norm)


class SwiGLU(GatedFeedForward):
    """`down(silu(gate(x)) * up(x))` of any width (Shazeer 2020)."""

    packed_as = "swiglu_fused"

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class FusedSwiGLU(GatedFeedForward):
    """SwiGLU with gate and up projections in one matrix: one large GEMM instead of two, with the same result.

    Runs of gate rows and of up rows take turns, so that an even split gives each tensor-parallel rank both of the same
    channels. There are few and long runs, because alternating rows would have every second number of the product read,
    which is slow on a CPU.
    """

    stored_as = "swiglu"
    packed_weights = {"gate_up_proj": ("gate_proj", "up_proj")}
    tensor_parallel = {"gate_up_proj": "colwise", "down_proj": "rowwise"}

    def __init__(self, context: LayerContext, *, intermediate_size: int, bias: bool = False) -> None:
        nn.Module.__init__(self)
        _check_width(context, intermediate_size)
        self.gate_up_proj = nn.Linear(context.hidden_size, 2 * intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, context.hidden_size, bias=bias)
        self.packed_runs = _runs(intermediate_size)
        self._channels_in_run = intermediate_size // self.packed_runs

    @classmethod
    def whole_units(cls, args: Args) -> Mapping[str, int]:
        return {"runs of gate and up channels": _runs(args["intermediate_size"])}

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_up_BTR2C = self.gate_up_proj(x_BTD).unflatten(-1, (-1, 2, self._channels_in_run))
        gate_BTRC, up_BTRC = gate_up_BTR2C.unbind(-2)
        return self.down_proj((silu(gate_BTRC) * up_BTRC).flatten(-2))


def _runs(intermediate_size: int) -> int:
    """The number of runs that so many channels are cut into: what is asked of tensor parallelism is a power of two that
    divides them, up to 16."""
    return math.gcd(intermediate_size, 16)


def _check_width(context: LayerContext, intermediate_size: int) -> None:
    if intermediate_size < 1:
        where = f"layers[{context.layer_index}].ffn"
        raise UserError(f"{where}: intermediate_size must be positive, got {intermediate_size}; use noop for no FFN")
