"""Qwen2 and Qwen2.5 (`model_type: qwen2`): biases on queries, keys and values; some layers may have windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lnlit.checkpoint.families.windows import read_window, window_keys
from lnlit.checkpoint.family import Family
from lnlit.checkpoint.hf import Config
from lnlit.specs import ModelSpec


class Qwen2(Family):
    """Without `layer_types`, layers from `max_window_layers` on have the window."""

    model_type, architecture = "qwen2", "Qwen2ForCausalLM"
    defaults = {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
    always = {"bias": True, "output_bias": False}

    def layer(self, config: Config, index: int) -> dict[str, Any]:
        is_late, is_on = index >= config.integer("max_window_layers", least=0), config.boolean("use_sliding_window")
        return super().layer(config, index) | read_window(config, index, is_late, is_on)

    def keys(self, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        first = next((index for index, args in enumerate(layers) if args.get("window")), len(layers))
        return {**window_keys(layers), "max_window_layers": first}

    def obstacles(self, spec: ModelSpec, folder: Path | None) -> Mapping[str, Sequence[str]]:
        found = dict(super().obstacles(spec, folder))
        if len({block.attention.args.get("window") for block in spec.layers}) > 1:
            found |= dict.fromkeys(("vLLM", "vLLM with lnlit-vllm"), ("it serves windows in all layers, or in none",))
        return found
