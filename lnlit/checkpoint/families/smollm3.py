"""SmolLM3 (`model_type: smollm3`): some layers, by default every fourth, have no rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lnlit.checkpoint.families.windows import read_window, window_keys
from lnlit.checkpoint.family import Family
from lnlit.checkpoint.hf import Config
from lnlit.specs import ModelSpec


class SmolLM3(Family):
    """A 1 in `no_rope_layers` marks a layer with rotary embedding. Layers without it have the window, if there is
    one."""

    model_type, architecture = "smollm3", "SmolLM3ForCausalLM"
    defaults = {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "rope_theta": 2_000_000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
    }
    attention = {**Family.attention, "bias": "attention_bias"}
    ffn = {**Family.ffn, "bias": "mlp_bias"}
    windowless = ("llama.cpp",)

    def layer(self, config: Config, index: int) -> dict[str, Any]:
        given, every = config.per_layer("no_rope_layers", (0, 1)), config.integer("no_rope_layer_interval")
        rotates = bool((index + 1) % every) if given is None else bool(given[index])
        return {
            **super().layer(config, index),
            **({} if rotates else {"rotary_dim": 0}),
            **read_window(config, index, not rotates, config.boolean("use_sliding_window")),
        }

    def keys(self, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**window_keys(layers), "no_rope_layers": [int(args.get("rotary_dim") != 0) for args in layers]}

    def obstacles(self, spec: ModelSpec, folder: Path | None) -> Mapping[str, Sequence[str]]:
        found = {reader: list(reasons) for reader, reasons in super().obstacles(spec, folder).items()}
        still = {index for index, block in enumerate(spec.layers) if block.attention.args.get("rotary_dim") == 0}
        if still != set(range(3, len(spec.layers), 4)):
            found["llama.cpp"] += ["it rotates all layers but every fourth, whatever the folder says"]
        return found
