"""One decoder block: two residual slots. Shape suffixes: B rows, T tokens, D hidden, d head size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lnlit import registry
from lnlit.interfaces import AttentionLayer, FeedForwardLayer, LayerContext
from lnlit.interfaces.layer import Attend
from lnlit.models.norm import RMSNorm
from lnlit.specs import BlockSpec, ModelSpec


@dataclass(frozen=True)
class Packed:
    """The weights that one parameter stacks along dim 0, in equal `runs` of rows: the first run of each weight, the
    second of each, and so on."""

    parts: tuple[str, ...]
    runs: int = 1

    def split(self, packed: Tensor) -> list[Tensor]:
        """The weights, in the order of `parts`; views if each has a single run."""
        runs = packed.unflatten(0, (self.runs, len(self.parts), -1))
        return [part.flatten(0, 1) for part in runs.unbind(1)]

    def join(self, weights: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.stack([weight.unflatten(0, (self.runs, -1)) for weight in weights], dim=1).flatten(0, 2)


class Block(nn.Module):
    """Computes `x += self_attn(input_layernorm(x)); x += mlp(post_attention_layernorm(x))`, and skips a slot whose part
    is not residual.

    Submodules have Hugging Face's Llama names, so a state dict needs no renaming.
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

    def packed_weights(self) -> dict[str, Packed]:
        """Maps the name of each parameter that stacks several weights along dim 0 to these weights. All names are
        relative to the block."""
        packed = {}
        for prefix, module in self.named_modules():
            for name, parts in getattr(module, "packed_weights", {}).items() if module is not self else ():
                for leaf, _ in module.get_submodule(name).named_parameters(recurse=False):  # no adapter's
                    weights = tuple(f"{prefix}.{part}.{leaf}" for part in parts)
                    packed[f"{prefix}.{name}.{leaf}"] = Packed(weights, getattr(module, "packed_runs", 1))
        return packed


def make_block(spec: ModelSpec, index: int, block: BlockSpec) -> Block:
    """Builds `block` as layer `index` of a model with this spec. It need not equal `spec.layers[index]`."""
    context = LayerContext(spec.hidden_size, index, spec.rope, spec.context_length, spec.norm_eps)
    attention = registry.build("attention", block.attention.type, context, **block.attention.args)
    ffn = registry.build("ffn", block.ffn.type, context, **block.ffn.args)
    return Block(attention, ffn, spec.hidden_size, spec.norm_eps)
