"""config.json of a Llama whose layers differ (`nemotron-nas`), as vLLM and our model class read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from lnlit_vllm import MODEL_TYPE

_COMMON_KEYS = {"no_op", "replace_with_linear"}
_ATTENTION_KEYS = _COMMON_KEYS | {"n_heads_in_group", "num_key_value_heads"}
_FFN_KEYS = _COMMON_KEYS | {"ffn_mult", "intermediate_size"}
_WIDTH_MULTIPLE = 256


@dataclass(frozen=True)
class AttentionBlock:
    """Attention of one layer. vLLM itself reads `no_op`, by which it means "keeps no KV cache" and so a linear one too,
    and `n_heads_in_group`, query heads per KV head.
    """

    no_op: bool = False
    replace_with_linear: bool = False
    n_heads_in_group: int | None = None


@dataclass(frozen=True)
class FeedForwardBlock:
    """FFN of one layer: SwiGLU of `intermediate_size`, one square matrix, or absent."""

    no_op: bool = False
    replace_with_linear: bool = False
    intermediate_size: int | None = None


@dataclass(frozen=True)
class BlockConfig:
    """One layer."""

    attention: AttentionBlock
    ffn: FeedForwardBlock


class DeciLMConfig(PretrainedConfig):
    """Llama's configuration, with `block_configs` in place of one KV-head count and one FFN width.

    KV heads and widths come in lnlit's spelling or in that of NVIDIA's releases (`ffn_mult`). Every other key of
    config.json becomes an attribute. Raises `ValueError` when no layer has attention, for vLLM serves no such model,
    and for settings of a layer that our model class does not know.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        block_configs: Sequence[Any] = (),
        max_position_embeddings: int = 2048,
        rope_parameters: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.max_position_embeddings = max_position_embeddings  # the base class wants these two before the others
        self.rope_parameters = rope_parameters
        super().__init__(**kwargs)
        self.block_configs = [
            block if isinstance(block, BlockConfig) else _read_block(block, self) for block in block_configs
        ]
        if block_configs and all(block.attention.no_op for block in self.block_configs):
            raise ValueError("no layer of this model has attention; vLLM serves models with at least one that has.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: vLLM hashes it, and logs it."""
        return super().to_dict() | {"block_configs": [dataclasses.asdict(block) for block in self.block_configs]}


def _read_block(block: Mapping[str, Any], config: Any) -> BlockConfig:
    attention, ffn = _known(block["attention"], _ATTENTION_KEYS), _known(block["ffn"], _FFN_KEYS)
    linear = bool(attention.get("replace_with_linear"))
    group, width = attention.get("n_heads_in_group"), ffn.get("intermediate_size")
    if kv_heads := attention.get("num_key_value_heads"):
        group = config.num_attention_heads // kv_heads
    if mult := ffn.get("ffn_mult"):
        width = -(-int(2 * mult * config.hidden_size / 3) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    return BlockConfig(
        AttentionBlock(bool(attention.get("no_op")) or linear, linear, group),
        FeedForwardBlock(bool(ffn.get("no_op")), bool(ffn.get("replace_with_linear")), width),
    )


def _known(slot: Mapping[str, Any], keys: set[str]) -> Mapping[str, Any]:
    for key, value in slot.items():
        if key not in keys and value not in (None, False):
            raise ValueError(f"block_configs: {key}={value!r} is not supported; known are {', '.join(sorted(keys))}.")
    return slot
