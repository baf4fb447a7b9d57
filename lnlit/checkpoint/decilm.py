"""NVIDIA's heterogeneous `nemotron-nas` folders (DeciLM): a Llama whose `block_configs` describe each layer.

Weights have Llama's names. A `no_op` slot has neither norm nor weights; `replace_with_linear` is one square matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lnlit.checkpoint.blocks import block_config, read_blocks
from lnlit.checkpoint.families.llama import Llama
from lnlit.checkpoint.family import Family, check_said
from lnlit.checkpoint.hf import CONFIG, Config, config_from_spec
from lnlit.checkpoint.readers import of_decilm
from lnlit.errors import UserError
from lnlit.interfaces import Export
from lnlit.specs import ModelSpec

_CODE = ("configuration_decilm.py", "modeling_decilm.py")
_PARTS = ("gqa", "swiglu", "single_linear", "noop")


class DeciLMCheckpoint(Family):
    """`model_type: nemotron-nas`, with FFN widths as `ffn_mult` or as `intermediate_size`. transformers loads it with
    the modeling code that is written beside it.
    """

    model_type, architecture = "nemotron-nas", "DeciLMForCausalLM"
    defaults = Llama.defaults

    def export(self, spec: ModelSpec) -> Export:
        """Query heads, head size and biases are one value for the whole model, that of the first layer with any."""
        for path, _, part in spec.parts():
            if part.type not in _PARTS:
                raise UserError(
                    f"{path}: {part.type!r} cannot be written to a transformers folder, only {', '.join(_PARTS)}."
                )
        attention, ffn = (_first(spec, each) for each in ("gqa", "swiglu"))
        heads = attention.get("num_heads", 1)
        config = {
            "architectures": [self.architecture],
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
        check_said(spec, self._spec(config, Path(CONFIG)))
        package = resources.files("lnlit.checkpoint.remote_code")
        return Export(config, files={name: package.joinpath(name).read_text(encoding="utf-8") for name in _CODE})

    def obstacles(self, spec: ModelSpec, folder: Path | None) -> Mapping[str, Sequence[str]]:
        return of_decilm(spec, folder)

    def _spec(self, values: Mapping[str, Any], where: Path) -> ModelSpec:
        config = Config(values, where, self.defaults)
        config.rotates_all()
        return config.spec(read_blocks(config))


def _first(spec: ModelSpec, part_type: str) -> Mapping[str, Any]:
    return next((part.args for _, _, part in spec.parts() if part.type == part_type), {})
