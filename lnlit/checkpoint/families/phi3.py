"""Phi-3, Phi-3.5, Phi-4 (`model_type: phi3`): queries, keys and values are in one matrix, and so are gate and up.

Long-context versions choose one of two lists of frequencies by the prompt's length (`longrope`), and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.checkpoint.families.mistral import Mistral
from lnlit.checkpoint.hf import Config


class Phi3(Mistral):
    """Windows as for Mistral. `partial_rotary_factor` is the fraction of each head that is rotated."""

    model_type, architecture = "phi3", "Phi3ForCausalLM"
    defaults = {
        "vocab_size": 32_064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    names = {
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    }

    def layer(self, config: Config, index: int) -> dict[str, Any]:
        window, share = config.nullable("sliding_window"), config.rotary_share()
        rotated = {} if share == 1 else {"rotary_dim": int(config.integer("head_dim") * share)}
        return rotated | ({} if window is None else {"window": window})

    def keys(self, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        first = layers[0] if layers else {}
        share = first.get("rotary_dim", first.get("head_dim", 1)) / first.get("head_dim", 1)
        return {**super().keys(layers), "partial_rotary_factor": share}
