"""What a pruned slot holds instead of the full layer (Puzzle's search space, Llama-Nemotron section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lnlit.interfaces import AttentionLayer, FeedForwardLayer, LayerContext
from lnlit.interfaces.layer import Attend


class NoAttention(nn.Module, AttentionLayer):
    """Adds nothing: the block has no attention and no norm for it."""

    residual = False

    def __init__(self, context: LayerContext) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        return x_BTD.new_zeros(x_BTD.shape)


class NoFeedForward(nn.Module, FeedForwardLayer):
    """Adds nothing: the block has no FFN and no norm for it."""

    residual = False

    def __init__(self, context: LayerContext) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.new_zeros(x_BTD.shape)


class SingleLinearAttention(nn.Module, AttentionLayer):
    """One [D, D] matrix in place of attention; each token attends only to itself."""

    tensor_parallel = {"linear_attn": "gathered"}

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(context.hidden_size, context.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        return self.linear_attn(x_BTD)


class SingleLinearFeedForward(nn.Module, FeedForwardLayer):
    """One [D, D] matrix in place of the FFN."""

    tensor_parallel = {"linear_mlp": "gathered"}

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(context.hidden_size, context.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.linear_mlp(x_BTD)
