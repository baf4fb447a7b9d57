"""Hugging Face Llama folders (`model_type: llama`): Llama 2 and 3.x, SmolLM2 and their relatives."""

from __future__ import annotations

from lnlit.checkpoint.blocks import SINGLE_LINEAR, read_blocks
from lnlit.checkpoint.family import Family
from lnlit.checkpoint.hf import Config
from lnlit.errors import UserError
from lnlit.interfaces import Export
from lnlit.specs import BlockSpec, ModelSpec


class Llama(Family):
    """`config.json` plus safetensors, single or sharded, tied or untied. With `block_configs`, the folder is a
    heterogeneous child made by NVIDIA's Model-Optimizer, which is read but never written."""

    model_type, architecture = "llama", "LlamaForCausalLM"
    defaults = {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
    }
    attention = {**Family.attention, "bias": "attention_bias"}
    ffn = {**Family.ffn, "bias": "mlp_bias"}

    def block(self, config: Config, index: int) -> BlockSpec:
        if not config.values.get("block_configs"):
            return super().block(config, index)
        config.rotates_all()
        block = read_blocks(config)[index]
        if SINGLE_LINEAR in (block.attention, block.ffn):
            raise UserError(
                f"{config.where}: block_configs[{index}]: replace_with_linear is not supported in a Llama: "
                "Model-Optimizer keeps the whole part there. A nemotron-nas folder can hold single linears."
            )
        return block

    def export(self, spec: ModelSpec) -> Export:
        export = super().export(spec)
        if spec.hidden_size % (heads := export.config["num_attention_heads"]):  # whatever head_dim says
            raise UserError(f"transformers refuses {heads} heads with a hidden size of {spec.hidden_size}")
        return export
