"""Each family of transformers' decoders: the same function as its own class computes, and its folders again."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from lnlit import registry
from lnlit.checkpoint.convert import import_model
from lnlit.checkpoint.folder import hf_config
from lnlit.checkpoint.formats import open_checkpoint, read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.checkpoint.readers import obstacles
from lnlit.errors import UserError
from lnlit.files import write_json
from lnlit.models.build import build_decoder
from lnlit.models.generate import Sampling, generate

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
WINDOW = {"sliding_window": 7}
SOME = {"use_sliding_window": True, **WINDOW}
FULL, SLIDING = "full_attention", "sliding_attention"
CASES = {
    "qwen2": {},
    "qwen2, tied, last layers with a window": {**SOME, "max_window_layers": 2, "tie_word_embeddings": True},
    "qwen2, all layers with a window": {**SOME, "max_window_layers": 0},
    "qwen2, every other layer with a window": {**SOME, "layer_types": [SLIDING, FULL] * 2},
    "qwen3, long heads": {"head_dim": 16},
    "qwen3, biases and windows": {**SOME, "head_dim": 10, "attention_bias": True, "max_window_layers": 1},
    "mistral": {"sliding_window": None, "head_dim": 12},
    "mistral, windows": WINDOW,
    "phi3": {"num_key_value_heads": 4},
    "phi3, windows, half of each head rotated": {**WINDOW, "rope_parameters": {"partial_rotary_factor": 0.5}},
    "smollm3": {},
    "smollm3, own layers, windows, biases": {
        **{**SOME, "no_rope_layers": [0, 1, 1, 0], "attention_bias": True, "mlp_bias": True},
    },
}
PROMPTS = [[5, 9, 3], list(range(1, 20)), [11]]
#: Keys that another key overrides, or that a trained model computes nothing with.
WITHOUT_EFFECT = {"max_window_layers", "no_rope_layer_interval", "initializer_range", "_name_or_path"}


@pytest.fixture(scope="module", params=CASES)
def family(request, tmp_path_factory):
    """A random model of transformers' own class, the folder it saves, and what lnlit makes of that."""
    config = AutoConfig.for_model(request.param.partition(",")[0], **(SIZES | CASES[request.param]))
    torch.manual_seed(0)
    oracle = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.normal_(float("norm" in name), 0.3)
    folder = tmp_path_factory.mktemp("family")
    oracle.save_pretrained(folder / "theirs")
    decoder = build_decoder(read_spec(folder / "theirs"), "cpu").eval()
    load_weights(decoder, folder / "theirs")
    return oracle, decoder, folder


@torch.no_grad()
def test_logits_are_its_own_classes(family, record_property):
    oracle, decoder, _ = family
    tokens = torch.randint(0, 97, (2, 64), generator=torch.Generator().manual_seed(1))
    ours, theirs = decoder(tokens), oracle(tokens).logits
    record_property("max_abs_difference", (worst := (ours - theirs).abs().max().item()))
    assert worst <= 1e-5 and theirs.abs().max() > 1
    lengths = (5, 40, 19, 64)
    packed = decoder(tokens, torch.cat([torch.arange(n) for n in lengths]).view(2, 64), lengths).flatten(0, 1)
    alone = [oracle(document[None]).logits[0] for document in tokens.flatten().split(lengths)]
    assert (packed - torch.cat(alone)).abs().max() <= 1e-5


def test_greedy_tokens_through_the_cache_are_its_own_classes(family):
    oracle, decoder, _ = family
    ours = [each.token_ids for each in generate(decoder, PROMPTS, Sampling(max_new_tokens=15), set())]
    for prompt, found in zip(PROMPTS, ours, strict=True):
        theirs = oracle.generate(torch.tensor([prompt]), max_new_tokens=15, do_sample=False)
        assert found == theirs[0, len(prompt) :].tolist()


def test_what_is_written_is_its_own_again_to_the_bit(family):
    oracle, decoder, folder = family
    out = import_model(folder / "theirs", folder / "ours", overwrite=True)
    assert read_spec(out) == decoder.spec
    again = AutoModelForCausalLM.from_pretrained(out)
    assert type(again) is type(oracle)
    expected = oracle.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    before, after = (config.to_dict() for config in (oracle.config, AutoConfig.from_pretrained(out)))
    differing = {key for key in before if before.get(key) != after.get(key)}
    assert differing <= WITHOUT_EFFECT
    (out / "lnlit.json").unlink()  # config.json alone says the same
    assert read_spec(out) == decoder.spec
    assert all(
        torch.equal(tensor, dict(open_checkpoint(folder / "theirs").weights(folder / "theirs"))[name])
        for name, tensor in open_checkpoint(out).weights(out)
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "phi3", "smollm3"])
def test_an_empty_config_means_what_transformers_class_means(tmp_path, name):
    for folder, config in (("empty", {"model_type": name}), ("full", AutoConfig.for_model(name).to_dict())):
        (tmp_path / folder).mkdir()
        write_json(tmp_path / folder / "config.json", json.loads(json.dumps(config)))
    assert read_spec(tmp_path / "empty") == read_spec(tmp_path / "full")


LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("phi3", {"rope_scaling": LONGROPE}, "rope type 'longrope' is not supported"),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor: expected a number above 0, up to 1, got 1.5"),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ("qwen3", {"layer_types": [FULL]}, "layer_types: expected a list of 4 times full_attention or sliding"),
        ("qwen3", {"layer_types": ["linear_attention"] * 4}, "layer_types: expected a list of 4 times"),
        (
            "qwen3",
            {**WINDOW, "layer_types": [SLIDING] * 4},
            r"layer_types\[0\] is sliding.* use_sliding_window is false",
        ),
        ("smollm3", {**WINDOW, "layer_types": [FULL, SLIDING] * 2}, r"layer_types\[1\].* use_sliding_window is false"),
        ("mistral", {"sliding_window": None, "layer_types": [SLIDING] * 4}, "but sliding_window is null"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers: expected an integer from 0 on, got -1"),
        ("qwen3", {"rope_parameters": {FULL: {"rope_theta": 7.0}}}, "rope parameters of their own for full_attention"),
        ("mistral", {"sliding_window": -1}, "sliding_window: expected a positive integer, got -1"),
        ("smollm3", {"no_rope_layers": "all"}, "no_rope_layers: expected a list of 4 times 0 or 1, got 'all'"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, name, changes, message):
    write_json(tmp_path / "config.json", {"model_type": name, **SIZES, **changes})
    with pytest.raises(UserError, match=message):
        read_spec(tmp_path)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {**WINDOW, "head_dim": 8, "layer_types": [SLIDING, FULL] * 2}),
        ("mistral", {**WINDOW, "head_dim": 8, "layer_types": None}),
        ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}}),
        (
            "llama",
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}, "original_max_position_embeddings": 16},
        ),
        ("qwen3", {"rope_parameters": {"type": "linear", "factor": 3.0}, "rope_theta": 500.0}),
    ],
)
@torch.no_grad()
def test_a_config_as_it_was_written_is_read_as_transformers_reads_it(tmp_path, name, changes):
    """Here transformers itself decides what class the keys mean, which saves other keys than it was given."""
    torch.manual_seed(0)
    write_json(tmp_path / "config.json", config := {"model_type": name, **SIZES, **changes})
    oracle = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    oracle.save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", config)
    decoder = build_decoder(read_spec(tmp_path), "cpu").eval()
    load_weights(decoder, tmp_path)
    tokens = torch.randint(0, 97, (2, 64), generator=torch.Generator().manual_seed(1))
    assert (decoder(tokens) - oracle(tokens).logits).abs().max() <= 1e-5


def test_a_mixture_that_no_family_has_words_for_names_the_first_layer(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "qwen3", **SIZES})
    spec = read_spec(tmp_path)
    assert hf_config(spec)["model_type"] == "qwen3"
    narrow = spec.layers[0].replace(attention=spec.layers[0].attention.replace(num_kv_heads=1))
    child = spec.replace(layers=(spec.layers[0], narrow, *spec.layers[2:]))
    assert hf_config(child)["model_type"] == "lnlit"
    with pytest.raises(UserError, match=r"layers\[1\].attention: its config.json would say gqa\(.*num_kv_heads=2"):
        registry.build("checkpoint", "qwen3").export(child)


@pytest.mark.parametrize(
    ("name", "changes", "unable"),
    [
        ("mistral", {"sliding_window": None}, set()),
        ("mistral", WINDOW, {"mlx-lm", "llama.cpp"}),
        ("qwen3", {**SOME, "max_window_layers": 4}, set()),
        ("qwen3", {**SOME, "max_window_layers": 2}, {"vLLM", "vLLM with lnlit-vllm", "mlx-lm", "llama.cpp"}),
        ("qwen3", {**SOME, "layer_types": [SLIDING] * 4}, {"mlx-lm", "llama.cpp"}),
        ("phi3", {}, set()),
        ("smollm3", {}, set()),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, {"llama.cpp"}),
    ],
)
def test_who_computes_something_else_is_known(tmp_path, name, changes, unable):
    write_json(tmp_path / "config.json", {"model_type": name, **SIZES, **changes})
    found = obstacles(read_spec(tmp_path), like=name)
    assert {reader for reader, reasons in found.items() if reasons} == unable


def test_the_family_of_the_model_before_is_kept_where_it_has_words(tmp_path):
    """A Mistral without window computes what a Llama does; its folder says Mistral all the same."""
    config = transformers.MistralConfig(**SIZES, sliding_window=None)
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path / "theirs")
    spec = read_spec(tmp_path / "theirs")
    assert (hf_config(spec)["model_type"], hf_config(spec, "mistral")["model_type"]) == ("llama", "mistral")
    out = import_model(tmp_path / "theirs", tmp_path / "ours")
    assert read_spec(import_model(out, tmp_path / "again")) == spec
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "mistral"
