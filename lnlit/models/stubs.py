"""Parts that replace a full layer in a pruned slot (Puzzle's search space, Llama-Nemotron section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lnlit.interfaces import AttentionLayer, FeedForwardLayer, LayerContext
from lnlit.interfaces.layer import Args, Attend, Conversion, Layer, Parent


class _Nothing(Layer):
    """A part that adds nothing, and can therefore replace any part."""

    residual = False

    @classmethod
    def short_name(cls, args: Args) -> str:
        return "noop"

    @classmethod
    def conversions(cls, args: Args, parent: Parent) -> Sequence[Conversion]:
        return (lambda weights, scores_F: {},)


class _SingleLinear(Layer):
    """A [D, D] matrix, which can replace any part: it is zero, as if there were none, until it is fitted."""

    @classmethod
    def short_name(cls, args: Args) -> str:
        return "linear"

    @classmethod
    def conversions(cls, args: Args, parent: Parent) -> Sequence[Conversion]:
        return (lambda weights, scores_F: {},)


class NoAttention(_Nothing, nn.Module, AttentionLayer):
    """An empty attention slot: the block has neither attention nor the norm before it."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        return x_BTD.new_zeros(x_BTD.shape)


class NoFeedForward(_Nothing, nn.Module, FeedForwardLayer):
    """An empty FFN slot: the block has neither an FFN nor the norm before it."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.new_zeros(x_BTD.shape)


class SingleLinearAttention(_SingleLinear, nn.Module, AttentionLayer):
    """One [D, D] matrix in place of attention; each token attends only to itself."""

    tensor_parallel = {"linear_attn": "gathered"}
    output_linear = "linear_attn"

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(context.hidden_size, context.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        return self.linear_attn(x_BTD)


class SingleLinearFeedForward(_SingleLinear, nn.Module, FeedForwardLayer):
    """One [D, D] matrix in place of the FFN."""

    tensor_parallel = {"linear_mlp": "gathered"}
    output_linear = "linear_mlp"

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(context.hidden_size, context.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.linear_mlp(x_BTD)
