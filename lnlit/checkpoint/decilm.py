"""NVIDIA's heterogeneous `nemotron-nas` folders (DeciLM): a Llama whose `block_configs` say what each layer holds.

Weight names are Llama's. A `no_op` slot has neither norm nor weights; `replace_with_linear` is one square matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.checkpoint.blocks import block_config, read_blocks
from lnlit.checkpoint.families.llama import Llama
from lnlit.checkpoint.family import check_said
from lnlit.checkpoint.hf import CONFIG, Config, config_from_spec, model_type
from lnlit.checkpoint.readers import of_decilm
from lnlit.checkpoint.safetensors_folder import folder_weights, is_tied
from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.interfaces import CheckpointFormat, Export
from lnlit.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


_CODE = ("configuration_decilm.py", "modeling_decilm.py")


class DeciLMCheckpoint(CheckpointFormat):
    """`model_type: nemotron-nas`, with FFN widths as `ffn_mult` or as `intermediate_size`. transformers loads it with
    the modeling code that is written beside it.
    """

    model_type = "nemotron-nas"

    def recognises(self, path: Path) -> bool:
        return model_type(path) == self.model_type

    def read_spec(self, path: Path) -> ModelSpec:
        spec = _spec(read_json(path / CONFIG), path / CONFIG)
        return spec.replace(tie_embeddings=is_tied(path, spec.tie_embeddings))

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        yield from folder_weights(path, self.read_spec(path))

    def export(self, spec: ModelSpec) -> Export:
        """Query heads, head size and biases are one value for the whole model."""
        attention = _shared_args(spec, "attention", "gqa", ("num_heads", "head_dim", "bias"))
        ffn = _shared_args(spec, "ffn", "swiglu", ("bias",))
        heads = attention.get("num_heads", 1)
        config = {
            "architectures": ["DeciLMForCausalLM"],
            "model_type": self.model_type,
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
            "block_configs": [block_config(block, heads, spec.hidden_size) for block in spec.layers],
        }
        check_said(spec, _spec(config, Path(CONFIG)))
        package = resources.files("lnlit.checkpoint.remote_code")
        return Export(config, files={name: package.joinpath(name).read_text(encoding="utf-8") for name in _CODE})

    def obstacles(self, spec: ModelSpec, folder: Path | None) -> Mapping[str, Sequence[str]]:
        return of_decilm(spec, folder)


def _spec(values: Mapping[str, Any], where: Path) -> ModelSpec:
    config = Config(values, where, Llama.defaults)
    config.rotates_all()
    return config.spec(read_blocks(config))


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
