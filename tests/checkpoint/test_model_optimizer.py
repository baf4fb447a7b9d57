"""Llama children as NVIDIA's Model-Optimizer writes them: `block_configs` in a Llama's config.json, a file per slot."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import transformers
from checkpoint_models import tiny_config
from safetensors.torch import save_file
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lnlit.checkpoint.convert import import_model
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.specs import NOOP, BlockSpec

SLOT = {"no_op": False, "replace_with_linear": False, "sparsify": None, "weights_precision": "bf16"}


def block(kv_heads: int | None, width: int | None) -> dict:
    """A layer in Model-Optimizer's words; None is an absent slot."""
    attention = SLOT | {"no_op": kv_heads is None, "num_key_value_heads": kv_heads, "llama4": None, "mamba": None}
    ffn = SLOT | {"no_op": width is None, "intermediate_size": width, "moe": None}
    return {"attention": attention, "ffn": ffn, "parallel_blocks": None}


class Same(nn.Module):
    def forward(self, hidden_states):
        return hidden_states


class Zeros(nn.Module):
    def forward(self, hidden_states, **kwargs):
        return torch.zeros_like(hidden_states)


class NoAttention(Zeros):
    def forward(self, hidden_states, **kwargs):
        return super().forward(hidden_states), None


def patched_llama(config: transformers.LlamaConfig, blocks: list[dict]) -> transformers.LlamaForCausalLM:
    """A Llama with layers of their own sizes where absent slots add zeros: what Model-Optimizer makes of one."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for index, layer in enumerate(blocks):
        own = copy.deepcopy(config)
        own.num_key_value_heads = layer["attention"]["num_key_value_heads"] or config.num_key_value_heads
        own.intermediate_size = layer["ffn"]["intermediate_size"] or config.intermediate_size
        model.model.layers[index] = LlamaDecoderLayer(own, index).eval()
        for parameter in model.model.layers[index].parameters():
            nn.init.normal_(parameter, std=0.2)
        if layer["attention"]["no_op"]:
            model.model.layers[index].input_layernorm = Same()
            model.model.layers[index].self_attn = NoAttention()
        if layer["ffn"]["no_op"]:
            model.model.layers[index].post_attention_layernorm = Same()
            model.model.layers[index].mlp = Zeros()
    return model


def write(folder: Path, model: transformers.LlamaForCausalLM, blocks: list[dict], **changes) -> Path:
    """As `save_checkpoint` of Model-Optimizer 0.47 does: one file per slot in a folder of its own, and an index."""
    files: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in model.state_dict().items():
        layer = name.split(".")[2] if ".layers." in name else None
        slot = "attention" if "attn" in name or "input" in name else "ffn"
        file = f"block_{layer}_{slot}" if layer else "embeddings" if "embed" in name else "lm_head"
        if not (model.config.tie_word_embeddings and name == "lm_head.weight"):
            files[f"subblocks_safetensors/{file}.safetensors"][name] = tensor
    (folder / "subblocks_safetensors").mkdir(parents=True)
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "block_configs": blocks} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


BLOCKS = [block(None, 40), block(1, 56), block(4, None), block(None, None), block(2, 33)]


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_a_child_computes_what_the_patched_llama_computes(tmp_path, tied):
    model = patched_llama(tiny_config(num_hidden_layers=5, tie_word_embeddings=tied), BLOCKS)
    folder = write(tmp_path / "child", model, BLOCKS)
    tokens = torch.randint(0, 97, (2, 40))
    for path in (folder, import_model(folder, tmp_path / "imported")):
        decoder = build_decoder(read_spec(path), "cpu").eval()
        load_weights(decoder, path)
        assert torch.equal(decoder(tokens), model(tokens).logits)
    assert decoder.spec.layers[3] == BlockSpec(NOOP, NOOP) and decoder.spec.tie_embeddings == tied


@torch.no_grad()
def test_a_parent_that_was_only_converted_is_the_llama_it_was(tmp_path):
    model = transformers.LlamaForCausalLM(tiny_config()).eval()
    imported = import_model(write(tmp_path / "converted", model, [block(2, 56)] * 3), tmp_path / "imported")
    assert "block_configs" not in json.loads((imported / "config.json").read_text())
    again = transformers.AutoModelForCausalLM.from_pretrained(imported)
    tokens = torch.randint(0, 97, (1, 20))
    assert torch.equal(again(tokens).logits, model(tokens).logits)


LINEAR = block(2, 56) | {"ffn": SLOT | {"replace_with_linear": True}}


@pytest.mark.parametrize(
    ("blocks", "changes", "message"),
    [
        ([block(2, 56), block(2, 56), LINEAR], {}, r"block_configs\[2\]: replace_with_linear is not supported in a Ll"),
        ([block(2, 56)] * 2, {}, r"must list 3 blocks \(num_hidden_layers\), got 2 entries"),
        (
            [block(3, 56)] * 3,
            {},
            r"block_configs\[0\].attention.num_key_value_heads: 3 does not divide num_attenti",
        ),
        ([block(2, 56) | {"parallel_blocks": [block(2, 56)]}] * 3, {}, r"block_configs\[0\]: parallel_blocks="),
        ([block(2, 56) | {"ffn": SLOT | {"moe": {"num_local_experts": 8}}}] * 3, {}, r"\[0\].ffn: moe="),
        ([block(2, 56) | {"attention": SLOT | {"mamba": {"state_dim": 8}}}] * 3, {}, r"\[0\].attention: mamba="),
        ([block(2, 56) | {"attention": None}] * 3, {}, r"\[0\].attention: expected a mapping, got None"),
        (
            None,
            {"per_layer_config": {"1": {"skip": ["mlp"]}}},
            "per_layer_config, which gives layers sizes of",
        ),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_for_what_it_is(tmp_path, blocks, changes, message):
    folder = write(tmp_path / "child", transformers.LlamaForCausalLM(tiny_config()), blocks, **changes)
    with pytest.raises(UserError, match=message):
        import_model(folder, tmp_path / "imported")


@pytest.mark.parametrize(
    "file", ["../weights.safetensors", "/tmp/weights.safetensors", "sub/../../weights.safetensors", 3]
)
def test_weights_outside_the_folder_are_not_read(tmp_path, file):
    folder = write(tmp_path / "child", transformers.LlamaForCausalLM(tiny_config()), [block(2, 56)] * 3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"of tensor lm_head\.weight must be a file below the same folder"):
        import_model(folder, tmp_path / "imported")
