"""Gated feed-forward layers. Shape suffixes: B rows, T tokens, D hidden, F intermediate."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from lnlit.errors import UserError
from lnlit.interfaces import FeedForwardLayer, LayerContext
from lnlit.specs import ModelSpec, PartSpec


class SwiGLU(nn.Module, FeedForwardLayer):
    """`down(silu(gate(x)) * up(x))` of any width (Shazeer 2020)."""

    tensor_parallel = {"gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise"}

    def __init__(self, context: LayerContext, *, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        _check_width(context, intermediate_size)
        self.gate_proj = nn.Linear(context.hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(context.hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, context.hidden_size, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class FusedSwiGLU(nn.Module, FeedForwardLayer):
    """SwiGLU with gate and up projections in one matrix: one large GEMM instead of two. Same mathematics."""

    packed_weights = {"gate_up_proj": ("gate_proj", "up_proj")}

    def __init__(self, context: LayerContext, *, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        _check_width(context, intermediate_size)
        self.gate_up_proj = nn.Linear(context.hidden_size, 2 * intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, context.hidden_size, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up_proj(x_BTD).chunk(2, dim=-1)
        return self.down_proj(silu(gate_BTF) * up_BTF)


def gate_and_up(spec: ModelSpec, together: bool) -> ModelSpec:
    """The same model with each SwiGLU's gate and up projections stored in one matrix, or in two."""
    before, after = ("swiglu", "swiglu_fused") if together else ("swiglu_fused", "swiglu")
    return spec.map_parts(lambda part: PartSpec(after, part.args) if part.type == before else part)


def _check_width(context: LayerContext, intermediate_size: int) -> None:
    if intermediate_size < 1:
        where = f"layers[{context.layer_index}].ffn"
        raise UserError(f"{where}: intermediate_size must be positive, got {intermediate_size}; use noop for no FFN")
