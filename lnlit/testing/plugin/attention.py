"""Attention with normed queries and keys. Shape suffixes: B rows, T tokens, D hidden, H heads, d head size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lnlit.interfaces import AttentionLayer, LayerContext, RMSNorm, apply_rope
from lnlit.interfaces.layer import Attend


class Example(nn.Module, AttentionLayer):
    """Multi-head attention whose queries and keys are normed before rotation (Henry et al. 2020)."""

    tensor_parallel = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "o_proj": "rowwise"}

    def __init__(self, context: LayerContext, *, num_heads: int, head_dim: int) -> None:
        super().__init__()
        width, self.head_dim = num_heads * head_dim, head_dim
        self.q_proj = nn.Linear(context.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(context.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(context.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, context.hidden_size, bias=False)
        self.q_norm, self.k_norm = RMSNorm(head_dim, 1e-6), RMSNorm(head_dim, 1e-6)

    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_dim)  # -1: under tensor parallelism a rank holds a part of them
        q_BTHd = apply_rope(self.q_norm(self.q_proj(x_BTD).view(heads)), *rope[self.head_dim])
        k_BTHd = apply_rope(self.k_norm(self.k_proj(x_BTD).view(heads)), *rope[self.head_dim])
        return self.o_proj(attend(q_BTHd, k_BTHd, self.v_proj(x_BTD).view(heads)).flatten(2))

    @classmethod
    def kv_cache_shape(cls, args: Mapping[str, Any]) -> tuple[int, int]:
        return args["num_heads"], args["head_dim"]

    @classmethod
    def whole_units(cls, args: Mapping[str, Any]) -> Mapping[str, int]:
        return {"heads": args["num_heads"]}
