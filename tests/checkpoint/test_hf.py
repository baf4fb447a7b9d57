"""Hugging Face Llama folders: the same function as transformers computes, and one clear error for each damage."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_models import save_tiny
from safetensors.torch import load_file, save_file

from lnlit.checkpoint.formats import open_checkpoint, read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.weights import canonical_weights

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIETIES = {
    "llama3 rope": {"rope_parameters": LLAMA3},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    "tied": {"tie_word_embeddings": True},
    "head size not hidden / heads": {"head_dim": 22},
    "attention and mlp bias": {"attention_bias": True, "mlp_bias": True},
    "one KV head": {"num_key_value_heads": 1},
    "multi-head attention": {"num_key_value_heads": 4},
    "wide heads, deep, own eps": {"head_dim": 64, "num_hidden_layers": 5, "rms_norm_eps": 1e-3},
}


def loaded(path):
    decoder = build_decoder(read_spec(path), "cpu").eval()
    load_weights(decoder, path)
    return decoder


@torch.no_grad()
def difference(decoder, oracle, tokens) -> tuple[float, bool]:
    """Largest difference of logits, and whether every arg-max agrees."""
    ours, theirs = decoder(tokens), oracle(tokens).logits
    return (ours - theirs).abs().max().item(), bool((ours.argmax(-1) == theirs.argmax(-1)).all())


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v != "absent"}))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("name", VARIETIES)
def test_small_models_compute_what_transformers_computes(tmp_path, name, record_property):
    oracle = save_tiny(tmp_path, **VARIETIES[name])
    worst, same = difference(loaded(tmp_path), oracle, torch.randint(0, 97, (2, 64)))
    record_property("max_abs_difference", worst)
    assert worst <= 1e-5
    assert same


def test_shards_and_the_old_rope_spelling_load_alike(tmp_path):
    oracle = save_tiny(tmp_path, max_shard_size="20KB", rope_parameters=LLAMA3)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    scaling = {key: value for key, value in LLAMA3.items() if key not in ("rope_theta", "rope_type")} | {
        "type": "llama3"
    }
    edit_config(tmp_path, rope_parameters="absent", rope_theta=50_000.0, rope_scaling=scaling)
    assert difference(loaded(tmp_path), oracle, torch.arange(90)[None])[0] <= 1e-5


def test_absent_keys_have_transformers_defaults(tmp_path):
    save_tiny(tmp_path, rms_norm_eps=1e-6, max_position_embeddings=2048)
    edit_config(tmp_path, rms_norm_eps="absent", max_position_embeddings="absent", tie_word_embeddings="absent")
    edit_config(tmp_path, num_key_value_heads=2, head_dim="absent", rope_parameters="absent")
    spec = read_spec(tmp_path)
    assert (spec.norm_eps, spec.context_length, spec.tie_embeddings, spec.rope.theta) == (1e-6, 2048, False, 10_000.0)
    assert spec.layers[0].attention.args["head_dim"] == 8


def test_a_tied_folder_that_stores_the_head_too_is_tied(tmp_path):
    oracle = save_tiny(tmp_path, tie_word_embeddings=True)
    edit_weights(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert read_spec(tmp_path).tie_embeddings
    assert difference(loaded(tmp_path), oracle, torch.arange(90)[None])[0] <= 1e-5


def test_a_folder_that_calls_two_different_matrices_tied_is_untied_as_in_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    save_tiny(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not read_spec(tmp_path).tie_embeddings
    assert difference(loaded(tmp_path), oracle, torch.arange(90)[None])[0] <= 1e-5


def test_a_tied_folder_may_store_its_matrix_as_the_head(tmp_path):
    oracle = save_tiny(tmp_path, tie_word_embeddings=True)
    edit_weights(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert difference(loaded(tmp_path), oracle, torch.arange(90)[None])[0] <= 1e-5


def test_frequencies_stored_by_old_versions_are_skipped(tmp_path):
    save_tiny(tmp_path)
    edit_weights(tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert "inv_freq" not in " ".join(dict(canonical_weights(loaded(tmp_path))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported. Supported: silu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope type 'linear' needs a positive number for 'factor'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "needs a positive number for 'factor', got 0"),
        ({"rope_parameters": {"rope_type": "linear", "factor": float("nan")}}, "for 'factor', got nan"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, r"rope type \['linear'\] is not supported"),
        ({"rope_parameters": {"rope_theta": -5.0}}, "rope_theta: expected a positive number, got -5.0"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta: expected a positive number"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps: expected a number from 0 on, got -1.0"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps: expected a number from 0 on, got inf"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: expected true or false, got 'false'"),
        ({"mlp_bias": "no"}, "mlp_bias: expected true or false, got 'no'"),
        ({"is_causal": False}, "is_causal false, so tokens see those behind them"),
        ({"hidden_size": 10**18}, "a tensor of these sizes cannot exist"),
        ({"vocab_size": 10**30}, "a tensor of these sizes cannot exist"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"hidden_size": "wide"}, "hidden_size: expected a positive integer, got 'wide'"),
        ({"num_key_value_heads": 3}, r"num_heads \(4\) must be a positive multiple of num_kv_heads \(3\)"),
        ({"intermediate_size": 48}, r"mlp.gate_proj.weight has shape \[56, 32\], the architecture expects \[48, 32\]"),
        ({"num_hidden_layers": 4}, "model.layers.3.* missing, though the architecture has them"),
        ({"num_hidden_layers": 2}, "model.layers.2.* unexpected"),
        ({"attention_bias": True}, "q_proj.bias.* missing"),
        ({"model_type": "lama"}, r"model_type 'lama', .* Did you mean 'llama'\?"),
        (
            {"model_type": "granite"},
            r"'granite', a decoder of a family .*Supported model types: llama, mistral, .*, nemotron-nas",
        ),
    ],
)
def test_an_unsupported_or_wrong_config_is_named(tmp_path, changes, message):
    save_tiny(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        list(open_checkpoint(tmp_path).weights(tmp_path))


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def scramble(file):
    file.write_bytes(b"\xff" * 64)


@pytest.mark.parametrize("damage", [cut, scramble])
def test_a_damaged_weight_file_is_named(tmp_path, damage):
    save_tiny(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"safetensors: not a complete safetensors file .*\. Copy or download it again\.$"
    ):
        loaded(tmp_path)


def test_missing_shards_and_lying_indexes_are_named(tmp_path):
    save_tiny(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.extra"] = min(index["weight_map"].values())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"promises tensor model.extra"):
        loaded(tmp_path)
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match="missing shard model-00002"):
        loaded(tmp_path)


def test_an_untied_folder_without_a_head_says_how_to_tie_it(tmp_path):
    save_tiny(tmp_path)
    edit_weights(tmp_path, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r'lm_head.weight is missing.*"tie_word_embeddings": true'):
        loaded(tmp_path)


def test_quantised_tensors_are_refused(tmp_path):
    save_tiny(tmp_path)
    edit_weights(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}))
    with pytest.raises(UserError, match=r"lm_head.weight has dtype I8; quantised"):
        loaded(tmp_path)


def test_pickles_are_refused_with_advice(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickles \(pytorch_model.bin\).*save_pretrained"):
        loaded(tmp_path)
