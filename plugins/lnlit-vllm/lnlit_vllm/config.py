"""The config.json of a Llama with heterogeneous layers (`nemotron-nas`), as vLLM and our model class read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from transformers import PretrainedConfig

from lnlit_vllm import MODEL_TYPE, OWN_ARCHITECTURE, OWN_MODEL_TYPE

_STUB_KEYS = ("no_op", "replace_with_linear")
_HEAD_KEYS = ("n_heads_in_group", "num_key_value_heads")
_WIDTH_KEYS = ("ffn_mult", "intermediate_size")
_WIDTH_MULTIPLE = 256
_NO_ATTENTION = "no layer of this model has attention; vLLM serves models with at least one that has."


@dataclass(frozen=True)
class AttentionBlock:
    """The attention of one layer. vLLM reads `no_op`, which it takes to mean "has no KV cache", so it is also true for
    a linear layer, and `n_heads_in_group`, the number of query heads per KV head."""

    no_op: bool = False
    replace_with_linear: bool = False
    n_heads_in_group: int | None = None


@dataclass(frozen=True)
class FeedForwardBlock:
    """The FFN of one layer: SwiGLU of width `intermediate_size`, one square matrix, or none."""

    no_op: bool = False
    replace_with_linear: bool = False
    intermediate_size: int | None = None


@dataclass(frozen=True)
class BlockConfig:
    """The configuration of one layer."""

    attention: AttentionBlock
    ffn: FeedForwardBlock


class DeciLMConfig(PretrainedConfig):
    """Llama's configuration, with `block_configs` instead of a single number of KV heads and FFN width.

    KV heads and widths are read as NVIDIA's releases write them (`n_heads_in_group`, `ffn_mult`) or as plain numbers.
    Every other key of config.json becomes an attribute. Raises `ValueError` if no layer has attention, because vLLM
    serves no such model, and for settings of a layer that our model class does not support.
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
            raise ValueError(_NO_ATTENTION)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, which vLLM hashes and logs."""
        return super().to_dict() | {"block_configs": [dataclasses.asdict(block) for block in self.block_configs]}


class LnlitConfig(PretrainedConfig):
    """The configuration of a model with parts that only lnlit has. `spec` is lnlit's description of it, as in
    lnlit.json.

    Raises `ValueError` if lnlit is not installed, if lnlit did not write the config.json, and if no layer has
    attention, because vLLM serves no such model.
    """

    model_type = OWN_MODEL_TYPE

    def __init__(
        self,
        spec: Mapping[str, Any] | None = None,
        max_position_embeddings: int = 2048,
        rope_parameters: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.max_position_embeddings = max_position_embeddings  # the base class wants these two before the others
        self.rope_parameters = rope_parameters
        kwargs["architectures"] = [OWN_ARCHITECTURE]
        super().__init__(**kwargs)
        self.spec = spec
        if spec is None:
            if "hidden_size" in kwargs:  # the class itself asks for one without arguments
                raise ValueError("config.json has no `spec`. `lnlit import FOLDER OUT` writes a folder that is served.")
            return
        shapes = [
            _lnlit().attention_class(block.attention).kv_cache_shape(block.attention.args)
            for block in self.model_spec.layers
        ]
        self.block_configs = [BlockConfig(AttentionBlock(no_op=shape is None), FeedForwardBlock()) for shape in shapes]
        cached = [shape for shape in shapes if shape is not None]
        if not cached:
            raise ValueError(_NO_ATTENTION)
        # vLLM counts heads by these before it has layers, which override them: no window, as many heads as are cached.
        self.num_attention_heads = self.num_key_value_heads = max(heads for heads, _ in cached)
        self.head_dim = max(size for _, size in cached)

    @property
    def model_spec(self) -> Any:
        return _lnlit().ModelSpec.from_json(self.spec)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, which vLLM hashes and logs."""
        return {key: value for key, value in super().to_dict().items() if key != "block_configs"}

    def __reduce__(self) -> Any:
        """Pickles the configuration without its class, which may have been made by `config_class` and cannot be
        imported by name."""
        return _restored, (self.model_type, self.__dict__)


def config_class(model_type: str) -> type[LnlitConfig]:
    """`LnlitConfig` for the folders of a family. transformers gives a class without `__init__` one of its own."""
    if model_type == OWN_MODEL_TYPE:
        return LnlitConfig
    return type("FamilyConfig", (LnlitConfig,), {"model_type": model_type, "__init__": LnlitConfig.__init__})


def _restored(model_type: str, state: dict[str, Any]) -> LnlitConfig:
    config = config_class(model_type)()
    config.__dict__.update(state)
    return config


def _lnlit() -> Any:
    try:
        from lnlit import interfaces, specs
    except ModuleNotFoundError as error:
        raise ValueError(f"this model has parts that only lnlit knows: {error}. Install lnlit beside vLLM.") from error
    return SimpleNamespace(attention_class=interfaces.attention_class, ModelSpec=specs.ModelSpec)


def _read_block(block: Mapping[str, Any], config: Any) -> BlockConfig:
    attention_stubs, heads = _read_slot("attention", block["attention"], _HEAD_KEYS)
    ffn_stubs, size = _read_slot("ffn", block["ffn"], _WIDTH_KEYS)
    group, width = heads.get("n_heads_in_group"), size.get("intermediate_size")
    if "num_key_value_heads" in heads:
        group = config.num_attention_heads // heads["num_key_value_heads"]
    if "ffn_mult" in size:  # NVIDIA's rule
        width = int(2 * round(size["ffn_mult"], 6) * config.hidden_size / 3)
        width = -(-width // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    removed, linear = attention_stubs
    return BlockConfig(AttentionBlock(removed or linear, linear, group), FeedForwardBlock(*ffn_stubs, width))


def _read_slot(
    name: str, slot: Mapping[str, Any], size_keys: tuple[str, ...]
) -> tuple[tuple[bool, bool], dict[str, Any]]:
    """(whether the slot is empty, whether it is linear, its size or None)."""
    for key, value in slot.items():
        if key not in (*size_keys, *_STUB_KEYS) and value not in (None, False):
            known = ", ".join((*size_keys, *_STUB_KEYS))
            raise ValueError(f"block_configs: {name}: {key}={value!r} is not supported; known are {known}.")
    removed, linear = (bool(slot.get(key)) for key in _STUB_KEYS)
    size = {key: slot[key] for key in size_keys if slot.get(key) is not None}
    if removed or linear:
        return (removed, linear), {}
    if len(size) != 1:
        raise ValueError(f"block_configs: {name}: expected one of {', '.join(size_keys)}, got {size or 'none'}.")
    return (removed, linear), size
