"""A plugin of one file goes all the way: imported, trained, exported with its own code, and read back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lnlit.checkpoint.formats import open_checkpoint, read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.checkpoint.readers import obstacles
from lnlit.files import read_json, write_json
from lnlit.models.build import build_decoder
from lnlit.specs import BlockSpec
from lnlit.testing import contracts
from lnlit.testing.tiny import attention, save_tokenizer, swiglu, tiny_spec

PACKAGE = Path(__file__).parents[1] / "lnlit-stranger"
FILE = PACKAGE / "lnlit_stranger.py"
NORMED = attention().replace(qk_norm=True)
ARGS = {"queries": 4, "keys": 2, "size": 8}


@pytest.fixture
def published(tmp_path) -> Path:
    """A model as its makers have it: transformers' weights, its name in config.json, a tokenizer."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2}
    config = Qwen3Config(vocab_size=258, hidden_size=32, intermediate_size=48, max_position_embeddings=128, **sizes)
    save_tokenizer(tmp_path / "published")
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "published")
    file = tmp_path / "published/config.json"
    write_json(file, {**read_json(file), "model_type": "stranger"})
    return tmp_path / "published"


def test_it_needs_nothing_but_what_is_offered():
    roots = {
        node.module
        for node in ast.walk(ast.parse(FILE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert {root for root in roots if root.startswith("lnlit")} == {"lnlit.interfaces", "lnlit.specs"}


@torch.no_grad()
def computes_the_same(folder: Path, oracle: torch.nn.Module) -> bool:
    decoder = build_decoder(read_spec(folder), "cpu")
    load_weights(decoder, folder)
    tokens = torch.randint(0, 258, (2, 40))
    return bool((decoder.eval()(tokens) - oracle.eval()(tokens).logits).abs().max() <= 1e-5)


def test_it_goes_all_the_way(installed, published, lnlit, config, tiny_model, tmp_path, remote_code_cache):
    installed(PACKAGE)
    contracts.check_layer("attention", "normed", ARGS)
    contracts.check_checkpoint("stranger", published)
    code, _, err = lnlit("import", published, "imported")
    assert code == 0, err
    assert computes_the_same(tmp_path / "imported", Qwen3ForCausalLM.from_pretrained(published))
    export = "\n  callbacks: [{class_path: ExportModel, init_args: {out: taught}}]\nmodel:"
    run = config((str(tiny_model), str(tmp_path / "imported")), ("max_steps: 2", "max_steps: 1"), ("\nmodel:", export))
    code, _, err = lnlit("fit", "--config", run)
    assert code == 0, err
    code, _, err = lnlit("export", "taught", "served")
    assert code == 0 and "transformers, vLLM with lnlit-vllm can run this architecture" in err, err
    assert "llama.cpp cannot: it knows no model type 'stranger'" in err
    taught, served = (dict(open_checkpoint(tmp_path / name).weights(tmp_path / name)) for name in ("taught", "served"))
    assert taught.keys() == served.keys() and all(torch.equal(taught[name], served[name]) for name in taught)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "served", trust_remote_code=True)
    assert type(model).__name__ == "StrangerForCausalLM" and computes_the_same(tmp_path / "served", model)


def test_what_keeps_others_from_a_mixture_is_told_as_without_it(installed):
    mixture = tiny_spec().replace(layers=(BlockSpec(attention(), swiglu()), BlockSpec(NORMED, swiglu())))
    alone = obstacles(mixture)
    installed(PACKAGE)
    assert alone["transformers"][0].startswith("nemotron-nas cannot hold it: ") and obstacles(mixture) == alone
