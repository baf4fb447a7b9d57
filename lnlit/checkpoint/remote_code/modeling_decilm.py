"""A Llama whose layers differ, for transformers 5. Written by lnlit; loaded with trust_remote_code=True.

Every layer has up to two residual slots. A slot is a full Llama part, one square matrix, or absent (then without norm).
"""

import copy

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
)

from .configuration_decilm import DeciLMConfig


class DeciLMLinearMixer(nn.Module):
    """In place of attention. A name with "Attention" in it would make transformers believe that this file has an
    implementation of its own, and ignore `set_attn_implementation`.
    """

    def __init__(self, config):
        super().__init__()
        self.linear_attn = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, **kwargs):
        return self.linear_attn(hidden_states), None


class DeciLMLinearMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear_mlp = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states):
        return self.linear_mlp(hidden_states)


def _attention(config, block, cache_index):
    if block.no_op:
        return None
    if block.replace_with_linear:
        return DeciLMLinearMixer(config)
    own = copy.copy(config)
    own.num_key_value_heads = config.num_attention_heads // block.n_heads_in_group
    attention = LlamaAttention(own, cache_index)
    attention.config = config  # shared, so that changing the attention implementation reaches every layer
    return attention


def _mlp(config, block):
    if block.no_op:
        return None
    if block.replace_with_linear:
        return DeciLMLinearMLP(config)
    own = copy.copy(config)
    own.intermediate_size = block.intermediate_size
    return LlamaMLP(own)


class DeciLMDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer_idx, cache_index):
        super().__init__()
        block = config.block_configs[layer_idx]
        self.self_attn = _attention(config, block.attention, cache_index)
        self.mlp = _mlp(config, block.ffn)
        if self.self_attn is not None:
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if self.mlp is not None:
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, **kwargs):
        if self.self_attn is not None:
            update, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + update
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class DeciLMModel(LlamaModel):
    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]
    _can_record_outputs = {"hidden_states": DeciLMDecoderLayer, "attentions": LlamaAttention}

    def __init__(self, config):
        shell = copy.copy(config)
        shell.num_hidden_layers = 0  # everything of a Llama but its layers
        super().__init__(shell)
        self.config = self.rotary_emb.config = config
        # Masks and positions come from the cache's entry 0, so the layers that use the cache are numbered from 0.
        cache_index = 0
        for layer_idx, block in enumerate(config.block_configs):
            self.layers.append(DeciLMDecoderLayer(config, layer_idx, cache_index))
            cache_index += not (block.attention.no_op or block.attention.replace_with_linear)
        self.post_init()


class DeciLMForCausalLM(LlamaForCausalLM):
    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = DeciLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
