"""NVIDIA's heterogeneous `nemotron-nas` folders (DeciLM): a Llama whose `block_configs` say what each layer holds.

Weight names are Llama's. A `no_op` slot has neither norm nor weights; `replace_with_linear` is one square matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.checkpoint.blocks import block_config, read_blocks
from lnlit.checkpoint.hf import CONFIG, Config, config_from_spec, model_type
from lnlit.checkpoint.safetensors_folder import folder_weights
from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.interfaces import CheckpointFormat
from lnlit.models.parts import stored
from lnlit.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


class DeciLMCheckpoint(CheckpointFormat):
    """`model_type: nemotron-nas`, with FFN widths as `ffn_mult` or as `intermediate_size`."""

    def recognises(self, path: Path) -> bool:
        return model_type(path) == "nemotron-nas"

    def read_spec(self, path: Path) -> ModelSpec:
        config = Config(read_json(path / CONFIG), path / CONFIG)
        return config.spec(read_blocks(config))

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        yield from folder_weights(path, self.read_spec(path))


def decilm_config(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of any spec made of our variants. Raises `UserError` naming a layer that the format cannot hold:
    query heads, head size and biases are one value for the whole model.
    """
    blocks = stored(spec)
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
        "block_configs": [block_config(block, heads, spec.hidden_size) for block in blocks.layers],
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
