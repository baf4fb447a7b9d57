"""A feed-forward layer gated by GELU. Shape suffixes: B rows, T tokens, D hidden."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu

from lnlit.interfaces import FeedForwardLayer, LayerContext


class GEGLU(nn.Module, FeedForwardLayer):
    """`down(gelu(gate(x)) * up(x))` of any width (Shazeer 2020, eq. 6)."""

    tensor_parallel = {"gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise"}

    def __init__(self, context: LayerContext, *, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(context.hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(context.hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, context.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(gelu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
