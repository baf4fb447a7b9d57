"""The model class `DeciLMForCausalLM`: vLLM's Llama with heterogeneous layers.

vLLM's own class for this architecture cannot begin with a layer without attention and has no linear layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.layernorm import RMSNorm  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.linear import RowParallelLinear  # pyright: ignore[reportMissingImports]
from vllm.model_executor.models.llama import (  # pyright: ignore[reportMissingImports]
    LlamaAttention,
    LlamaForCausalLM,
    LlamaMLP,
)
from vllm.model_executor.models.utils import extract_layer_index  # pyright: ignore[reportMissingImports]

from lnlit_vllm.config import AttentionBlock, FeedForwardBlock


class LinearAttention(nn.Module):
    """One square matrix in place of attention."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.linear_attn = _square(vllm_config, f"{prefix}.linear_attn")

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        return self.linear_attn(hidden_states)[0]


class LinearMLP(nn.Module):
    """One square matrix in place of the FFN."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.linear_mlp = _square(vllm_config, f"{prefix}.linear_mlp")

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_mlp(x)[0]


class DecoderLayer(nn.Module):
    """A layer with up to two residual slots, each with its own norm."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        block = config.block_configs[extract_layer_index(prefix)]
        self.self_attn = _attention(vllm_config, block.attention, f"{prefix}.self_attn")
        self.mlp = _mlp(vllm_config, block.ffn, f"{prefix}.mlp")
        if self.self_attn is not None:
            self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if self.mlp is not None:
            self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream is `hidden_states + residual`, which vLLM's norms add. The first layer is called without
        a residual and returns one even if both slots are empty, because the next layer may be empty too or on another
        GPU."""
        update, stream = hidden_states, residual
        if stream is None:
            update, stream = torch.zeros_like(hidden_states), hidden_states
        if self.self_attn is not None:
            update, stream = self.input_layernorm(update, stream)
            update = self.self_attn(positions=positions, hidden_states=update)
        if self.mlp is not None:
            update, stream = self.post_attention_layernorm(update, stream)
            update = self.mlp(update)
        return update, stream


class DeciLMForCausalLM(LlamaForCausalLM):
    """Any mixture of attention, FFN, single matrices and empty slots. Tensor and pipeline parallelism, quantisation,
    LoRA and weight loading are those of vLLM's Llama."""

    has_noops = True  # the KV cache has one entry per layer with attention, not per layer

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = DecoderLayer):
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)


def _attention(vllm_config: VllmConfig, block: AttentionBlock, prefix: str) -> nn.Module | None:
    if block.replace_with_linear:
        return LinearAttention(vllm_config, prefix)
    if block.no_op:
        return None
    config = vllm_config.model_config.hf_config
    bias: Any = getattr(config, "attention_bias", False)
    return LlamaAttention(
        config=config,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads // block.n_heads_in_group,
        max_position_embeddings=config.max_position_embeddings,
        quant_config=vllm_config.quant_config,
        bias=bias,
        bias_o_proj=bias,
        cache_config=vllm_config.cache_config,
        prefix=prefix,
    )


def _mlp(vllm_config: VllmConfig, block: FeedForwardBlock, prefix: str) -> nn.Module | None:
    if block.replace_with_linear:
        return LinearMLP(vllm_config, prefix)
    if block.no_op:
        return None
    config = vllm_config.model_config.hf_config
    return LlamaMLP(
        hidden_size=config.hidden_size,
        intermediate_size=block.intermediate_size,
        hidden_act=config.hidden_act,
        quant_config=vllm_config.quant_config,
        bias=getattr(config, "mlp_bias", False),
        prefix=prefix,
    )


def _square(vllm_config: VllmConfig, prefix: str) -> RowParallelLinear:
    size = vllm_config.model_config.hf_config.hidden_size
    quant_config = vllm_config.quant_config
    return RowParallelLinear(size, size, bias=False, input_is_parallel=False, quant_config=quant_config, prefix=prefix)
