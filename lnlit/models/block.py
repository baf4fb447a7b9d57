"""One decoder block: two residual slots. Shape suffixes: B rows, T tokens, D hidden, d head size."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lnlit.interfaces import AttentionLayer, FeedForwardLayer
from lnlit.interfaces.layer import Attend
from lnlit.models.norm import RMSNorm


class Block(nn.Module):
    """`x += self_attn(input_layernorm(x)); x += mlp(post_attention_layernorm(x))`, each only if its part is residual.

    Submodules carry Hugging Face's Llama names, so a state dict needs no renaming.
    """

    def __init__(self, attention: AttentionLayer, ffn: FeedForwardLayer, hidden_size: int, norm_eps: float) -> None:
        super().__init__()
        self.self_attn = attention if attention.residual else None
        self.input_layernorm = RMSNorm(hidden_size, eps=norm_eps) if attention.residual else None
        self.mlp = ffn if ffn.residual else None
        self.post_attention_layernorm = RMSNorm(hidden_size, eps=norm_eps) if ffn.residual else None

    def forward(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        return self.add_ffn(self.add_attention(x_BTD, attend, rope))

    def add_attention(self, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        """The residual stream after the attention slot."""
        if self.self_attn is None or self.input_layernorm is None:
            return x_BTD
        return x_BTD + self.self_attn(self.input_layernorm(x_BTD), attend, rope)

    def add_ffn(self, x_BTD: Tensor) -> Tensor:
        """The residual stream after the FFN slot."""
        if self.mlp is None or self.post_attention_layernorm is None:
            return x_BTD
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
