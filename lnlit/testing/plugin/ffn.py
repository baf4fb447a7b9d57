"""A feed-forward layer gated by GELU. Shape suffixes: B rows, T tokens, D hidden."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu

from lnlit.interfaces import GatedFeedForward


class Example(GatedFeedForward):
    """`down(gelu(gate(x)) * up(x))` of any width (Shazeer 2020, eq. 6)."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(gelu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
