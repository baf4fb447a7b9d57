"""Mistral (`model_type: mistral`): a Llama whose every layer may see a window of tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.checkpoint.family import Family
from lnlit.checkpoint.hf import Config


class Mistral(Family):
    """A `sliding_window` of null is none, and one that is left out is 4096."""

    model_type, architecture = "mistral", "MistralForCausalLM"
    defaults = {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    }

    def layer(self, config: Config, index: int) -> dict[str, Any]:
        window = config.nullable("sliding_window")
        return super().layer(config, index) | ({} if window is None else {"window": window})

    def keys(self, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"sliding_window": layers[0].get("window") if layers else None}
