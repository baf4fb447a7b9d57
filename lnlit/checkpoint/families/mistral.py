"""Mistral (`model_type: mistral`): a Llama whose layers may attend to a window of tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.checkpoint.families.windows import read_window
from lnlit.checkpoint.family import Family
from lnlit.checkpoint.hf import Config


class Mistral(Family):
    """A `sliding_window` of null means none, and a missing one means 4096. All layers have it, unless there are
    `layer_types`, which transformers treats as a Ministral; such a folder is read but never written."""

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
        return super().layer(config, index) | read_window(config, index, by_itself=True, is_on=True)

    def keys(self, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"sliding_window": layers[0].get("window") if layers else None}
