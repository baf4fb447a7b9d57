"""Qwen3, the dense models (`model_type: qwen3`): each query and key head is normalised."""

from __future__ import annotations

from lnlit.checkpoint.families.qwen2 import Qwen2
from lnlit.checkpoint.family import Family


class Qwen3(Qwen2):
    """Like Qwen2, with norms of query and key heads instead of biases."""

    model_type, architecture = "qwen3", "Qwen3ForCausalLM"
    defaults = {**Qwen2.defaults, "head_dim": 128, "attention_bias": False}
    attention = {**Family.attention, "bias": "attention_bias"}
    always = {"qk_norm": True}
