"""NVIDIA's heterogeneous `nemotron-nas` folders (DeciLM): a Llama whose `block_configs` say what each layer holds.

Weight names are Llama's. A `no_op` slot has neither norm nor weights; `replace_with_linear` is one square matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.checkpoint.hf import CONFIG, Config, config_from_spec, model_type, stored_part
from lnlit.checkpoint.safetensors_folder import folder_weights
from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.interfaces import CheckpointFormat
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

if TYPE_CHECKING:
    from torch import Tensor

SINGLE_LINEAR = PartSpec("single_linear")
_HEAD_KEYS = ("n_heads_in_group", "num_key_value_heads")
_WIDTH_KEYS = ("ffn_mult", "intermediate_size")
_COMMON_KEYS = ("no_op", "replace_with_linear")
_WIDTH_MULTIPLE = 256


class DeciLMCheckpoint(CheckpointFormat):
    """`model_type: nemotron-nas`, with FFN widths as `ffn_mult` or as `intermediate_size`."""

    def recognises(self, path: Path) -> bool:
        return model_type(path) == "nemotron-nas"

    def read_spec(self, path: Path) -> ModelSpec:
        config = Config(read_json(path / CONFIG), path / CONFIG)
        blocks = config.values.get("block_configs")
        count = config.integer("num_hidden_layers", 32)
        if not isinstance(blocks, list) or len(blocks) != count:
            got = f"{len(blocks)} entries" if isinstance(blocks, list) else repr(blocks)
            raise UserError(f"{config.where}: block_configs must list {count} blocks (num_hidden_layers), got {got}.")
        return config.spec(tuple(_block(config, block, index) for index, block in enumerate(blocks)))

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        yield from folder_weights(path, self.read_spec(path))


def _block(config: Config, block: Any, index: int) -> BlockSpec:
    where = f"{config.where}: block_configs[{index}]"
    if not isinstance(block, Mapping):
        raise UserError(f"{where}: expected a mapping with 'attention' and 'ffn', got {block!r}.")
    attention = _Slot(block.get("attention"), f"{where}.attention", _HEAD_KEYS)
    ffn = _Slot(block.get("ffn"), f"{where}.ffn", _WIDTH_KEYS)
    return BlockSpec(
        attention.stub or PartSpec("gqa", _attention_args(config, attention)),
        ffn.stub or PartSpec("swiglu", {"intermediate_size": _width(config, ffn)} | config.bias("mlp_bias")),
    )


class _Slot:
    """One slot of a block config. `stub` is its part when it is removed or replaced, else None."""

    def __init__(self, values: Any, where: str, size_keys: tuple[str, ...]) -> None:
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: expected a mapping, got {values!r}.")
        allowed = (*size_keys, *_COMMON_KEYS)
        for key, value in values.items():
            if key not in allowed and value not in (None, False):
                raise UserError(f"{where}: {key}={value!r} is not supported; only {', '.join(allowed)} may be set.")
        self.where = where
        self.sizes = {key: values[key] for key in size_keys if values.get(key) is not None}
        removed, linear = (bool(values.get(key)) for key in _COMMON_KEYS)
        if removed and linear:
            raise UserError(f"{where}: no_op and replace_with_linear exclude each other, both are set.")
        self.stub = NOOP if removed else SINGLE_LINEAR if linear else None
        if self.stub is None and len(self.sizes) != 1:
            raise UserError(f"{where}: expected one of {', '.join(size_keys)}, got {self.sizes or 'none'}.")

    def size(self) -> tuple[str, float]:
        (key, value), *_ = self.sizes.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise UserError(f"{self.where}.{key}: expected a positive number, got {value!r}.")
        return key, value


def _attention_args(config: Config, slot: _Slot) -> dict[str, Any]:
    heads = config.integer("num_attention_heads", 32)
    key, size = slot.size()
    if size != int(size) or heads % int(size):
        raise UserError(f"{slot.where}.{key}: {size} does not divide num_attention_heads ({heads}).")
    kv_heads = heads // int(size) if key == "n_heads_in_group" else int(size)
    return {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": config.head_dim(heads)} | config.bias(
        "attention_bias"
    )


def _width(config: Config, slot: _Slot) -> int:
    """FFN width. From a multiplier: two thirds of it times the hidden size, rounded up to a multiple of 256."""
    key, size = slot.size()
    if key == "intermediate_size":
        return int(size)
    width = int(2 * size * config.integer("hidden_size", 4096) / 3)
    return -(-width // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE


def decilm_config(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of any spec made of our variants. Raises `UserError` naming a layer that the format cannot hold:
    query heads, head size and biases are one value for the whole model.
    """
    blocks = spec.map_parts(stored_part)
    attention = _shared_args(blocks, "attention", "gqa", ("num_heads", "head_dim", "bias"))
    ffn = _shared_args(blocks, "ffn", "swiglu", ("bias",))
    heads = attention.get("num_heads", 1)
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {
            "AutoConfig": "configuration_decilm.DeciLMConfig",
            "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
        },
        **config_from_spec(spec),
        "intermediate_size": None,
        "num_attention_heads": heads,
        "num_key_value_heads": None,
        "head_dim": attention.get("head_dim", spec.hidden_size),
        "attention_bias": attention.get("bias", False),
        "mlp_bias": ffn.get("bias", False),
        "block_configs": [_block_config(block, heads) for block in blocks.layers],
    }


def _shared_args(spec: ModelSpec, kind: str, full_type: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """The arguments that every `full_type` part of the model must agree on; {} when there is no such part."""
    shared: dict[str, Any] = {}
    first = ""
    for path, part_kind, part in spec.parts():
        if part_kind != kind or part.type in ("noop", "single_linear"):
            continue
        if part.type != full_type:
            raise UserError(
                f"{path}: {part.type!r} cannot be written to a transformers folder. "
                f"That format holds {full_type}, single_linear and noop."
            )
        args = {key: part.args.get(key, False) for key in keys}
        shared, first = shared or args, first or path
        if args != shared:
            key = next(key for key in keys if args[key] != shared[key])
            raise UserError(
                f"{path}: {key}={args[key]} differs from {first}, which has {shared[key]}; a transformers folder "
                f"has one {key} for all layers. Give every {full_type} the same."
            )
    return shared


def _block_config(block: BlockSpec, heads: int) -> dict[str, Any]:
    attention, ffn = _stub_keys(block.attention), _stub_keys(block.ffn)
    if block.attention.type == "gqa":
        attention["n_heads_in_group"] = heads // block.attention.args["num_kv_heads"]
    if block.ffn.type == "swiglu":
        ffn["intermediate_size"] = block.ffn.args["intermediate_size"]
    return {"attention": attention, "ffn": ffn}


def _stub_keys(part: PartSpec) -> dict[str, Any]:
    return {"no_op": part == NOOP, "replace_with_linear": part == SINGLE_LINEAR}


def vllm_obstacles(spec: ModelSpec) -> list[str]:
    """Why stock vLLM (`nemotron_nas`, 0.32) could not serve this spec's folder; empty when it can."""
    found = [f"{path}: vLLM knows no single_linear" for path, _, part in spec.parts() if part.type == "single_linear"]
    for index, block in enumerate(spec.layers):
        if block.attention.type != "noop":
            return found
        if block.ffn.type != "noop":
            found.append(f"layers[{index}]: vLLM needs attention in the first layer that has any weights")
            return found
    return [*found, "vLLM needs at least one layer with weights"]
