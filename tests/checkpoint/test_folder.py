"""Model folders: what transformers makes of them, and what a failed save leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import warm
from checkpoint_models import LINEAR, mixed_spec, random_decoder, save_tiny
from safetensors.torch import load_file, save_file
from transformers import AttentionMaskInterface, AutoModelForCausalLM, LlamaForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from lnlit.checkpoint.folder import read_provenance, save_folder
from lnlit.checkpoint.formats import open_checkpoint, read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.checkpoint.remote_code.configuration_decilm import DeciLMConfig
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.weights import canonical_weights
from lnlit.specs import NOOP, BlockSpec, PartSpec

PROMPTS = [[5, 17, 3, 88, 41, 2, 9], [60], [12, 71, 33]]
NEW_TOKENS = 12


def save(out, decoder, **changes):
    arguments = {"tokenizer_from": None, "provenance": {"parent": "none"}} | changes
    return save_folder(out, decoder.spec, canonical_weights(decoder), **arguments)


def in_transformers(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


@torch.no_grad()
def greedy(decoder, prompt):
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        tokens.append(int(decoder(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def generate_together(model):
    """All prompts in one left-padded batch, with transformers' KV cache."""
    width = max(map(len, PROMPTS))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    return model.generate(tokens, attention_mask=mask, **options)[:, width:].tolist()


def gqa(kv_heads):
    return PartSpec("gqa", {"num_heads": 4, "num_kv_heads": kv_heads, "head_dim": 10})


def swiglu(width):
    return PartSpec("swiglu", {"intermediate_size": width})


def without(spec, slot):
    return spec.replace(layers=tuple(block.replace(**{slot: NOOP}) for block in spec.layers))


CHILDREN = {
    "every variant": mixed_spec(),
    "tied": mixed_spec(tie_embeddings=True),
    "weightless first layer": mixed_spec(layers=(BlockSpec(NOOP, NOOP), *mixed_spec().layers)),
    "linear first layer": mixed_spec(layers=(BlockSpec(LINEAR, LINEAR), *mixed_spec().layers)),
    "no FFN at all": without(mixed_spec(), "ffn"),
    "no attention at all": without(mixed_spec(), "attention"),
    "homogeneous, heads that do not divide the width": mixed_spec(
        hidden_size=34, layers=(mixed_spec().layers[5], mixed_spec().layers[5])
    ),
    "fused homogeneous": mixed_spec(layers=(mixed_spec().layers[1],) * 2),
}


@pytest.mark.parametrize("name", CHILDREN)
def test_children_answer_alike_in_transformers(tmp_path, name, record_property):
    decoder = random_decoder(CHILDREN[name])
    model = in_transformers(save(tmp_path / "child", decoder))
    tokens = torch.randint(0, 97, (2, 48))
    with torch.no_grad():
        worst = (decoder(tokens) - model(tokens).logits).abs().max().item()
    record_property("max_abs_difference", worst)
    assert worst <= 1e-5
    assert generate_together(model) == [greedy(decoder, prompt) for prompt in PROMPTS]


def test_the_attention_implementation_can_be_chosen(tmp_path):
    decoder = random_decoder(mixed_spec())
    folder = save(tmp_path / "child", decoder)
    eager = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager")
    assert {
        layer.self_attn.config._attn_implementation for layer in (eager.model.layers[1], eager.model.layers[5])
    } == {"eager"}
    tokens = torch.randint(0, 97, (1, 20))
    with torch.no_grad():
        assert (eager(tokens).logits - decoder(tokens)).abs().max() <= 1e-4


def test_a_homogeneous_model_is_a_stock_llama(tmp_path):
    folder = save(tmp_path / "llama", random_decoder(CHILDREN["fused homogeneous"]))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config
    assert not list(folder.glob("*.py"))
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), LlamaForCausalLM)


def test_the_attention_implementation_can_be_changed_later(tmp_path):
    """transformers decides by the words in a model's file whether that is so; a call shows whether it had an effect."""
    calls = []

    def counted(module, *args, **kwargs):
        calls.append(module.layer_idx)
        return eager_attention_forward(module, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("counted", counted)
    AttentionMaskInterface.register("counted", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model = in_transformers(save(tmp_path / "child", random_decoder(mixed_spec())))
    tokens = torch.randint(0, 97, (1, 20))
    before = model(tokens).logits
    model.set_attn_implementation("counted")
    assert (model(tokens).logits - before).abs().max() <= 1e-4
    assert calls == [0, 1, 2]  # the three layers that have attention
    model.set_attn_implementation("eager")
    attentions = model(tokens, output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == [(1, 4, 20, 20)] * 3


def test_block_configs_are_objects_with_the_attributes_vllm_reads(tmp_path):
    """Where there is an `ffn_mult` vLLM, SGLang and TensorRT-LLM work the width out; else vLLM reads the other one."""
    spec = mixed_spec()
    wide = spec.layers[5].replace(ffn=spec.layers[5].ffn.replace(intermediate_size=256))
    config = in_transformers(save(tmp_path / "child", random_decoder(mixed_spec(layers=(*spec.layers, wide))))).config
    second, last = config.block_configs[1], config.block_configs[-1]
    assert (second.attention.no_op, second.attention.n_heads_in_group) == (False, 2)
    assert second.ffn.intermediate_size == 72
    assert not hasattr(second.ffn, "ffn_mult")
    assert (last.ffn.intermediate_size, last.ffn.ffn_mult) == (256, 12.0)
    assert config.rope_parameters["rope_theta"] == 10_000.0


@pytest.mark.parametrize(
    ("attention", "ffn", "message"),
    [
        ({"n_heads_in_group": 2, "num_key_value_heads": 2}, {"no_op": True}, "expected one of n_heads_in_group, num"),
        ({"no_op": True}, {}, "expected one of ffn_mult, intermediate_size"),
        ({"n_heads_in_group": 2, "window_length": 64}, {"no_op": True}, "window_length=64 is not supported"),
    ],
)
def test_the_folders_own_code_refuses_layers_that_it_does_not_know(attention, ffn, message):
    with pytest.raises(ValueError, match=message):
        DeciLMConfig(hidden_size=32, num_attention_heads=4, block_configs=[{"attention": attention, "ffn": ffn}])


def test_the_folders_own_code_reads_both_spellings(tmp_path):
    """What lnlit wrote before it learned NVIDIA's keys, and what NVIDIA writes with all of them, are one model."""
    first, second = (BlockSpec(gqa(kv_heads), swiglu(512)) for kv_heads in (4, 1))
    spec = mixed_spec(layers=(first, second, BlockSpec(NOOP, swiglu(256))))
    decoder = random_decoder(spec)
    folder = save(tmp_path / "child", decoder)
    config = json.loads((folder / "config.json").read_text())
    plain = [
        {"attention": {"num_key_value_heads": 4}, "ffn": {"intermediate_size": 512}},
        {"attention": {"n_heads_in_group": 4, "no_op": False}, "ffn": {"intermediate_size": 512}},
        {"attention": {"no_op": True}, "ffn": {"intermediate_size": 256}},
    ]
    nothing = {"sparsify": None, "window_length": None, "unshifted_sink": False}
    nvidias = [{slot: part | nothing for slot, part in block.items()} for block in config["block_configs"]]
    tokens = torch.randint(0, 97, (1, 20))
    for blocks in (plain, nvidias):
        (folder / "config.json").write_text(json.dumps(config | {"block_configs": blocks}))
        model = in_transformers(folder)
        assert (model(tokens).logits - decoder(tokens)).abs().max() <= 1e-5
        model.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text())["block_configs"] == blocks
        assert read_spec(tmp_path / "again") == spec


def test_transformers_can_save_the_child_again(tmp_path):
    decoder = random_decoder(mixed_spec())
    in_transformers(save(tmp_path / "child", decoder)).save_pretrained(tmp_path / "again")
    reread = build_decoder(read_spec(tmp_path / "again"), "cpu")
    load_weights(reread, tmp_path / "again")
    original = dict(canonical_weights(decoder))
    assert all(torch.equal(tensor, original[name]) for name, tensor in canonical_weights(reread))


def test_shards_are_indexed_and_hold_every_tensor_once(tmp_path):
    decoder = random_decoder(mixed_spec())
    folder = save(tmp_path / "sharded", decoder, max_shard_bytes=8_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert all((folder / file).is_file() for file in index["weight_map"].values())
    assert index["weight_map"].keys() == dict(canonical_weights(decoder)).keys()
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in decoder.parameters())
    tokens = torch.randint(0, 97, (1, 20))
    assert torch.allclose(in_transformers(folder)(tokens).logits, decoder(tokens), atol=1e-4)


def test_spec_and_provenance_come_back(tmp_path):
    folder = save(tmp_path / "child", random_decoder(mixed_spec()), provenance={"parent": "smollm2", "seed": 7})
    assert read_spec(folder) == mixed_spec()
    provenance = read_provenance(folder)
    assert (provenance["parent"], provenance["seed"]) == ("smollm2", 7)


def test_incomplete_or_repeated_weights_leave_nothing(tmp_path):
    decoder = random_decoder(mixed_spec())
    weights = list(canonical_weights(decoder))
    common = {"tokenizer_from": None, "provenance": {}}
    with pytest.raises(UserError, match=r"tensor model.embed_tokens.weight is missing"):
        save_folder(tmp_path / "child", decoder.spec, weights[1:], **common)
    with pytest.raises(UserError, match="comes twice"):
        save_folder(tmp_path / "child", decoder.spec, weights + weights[:1], **common)
    assert not list(tmp_path.iterdir())


def test_overwriting_needs_permission_and_a_model_folder(tmp_path):
    decoder = random_decoder(mixed_spec())
    save(tmp_path / "child", decoder)
    with pytest.raises(UserError, match="exists already"):
        save(tmp_path / "child", decoder)
    save(tmp_path / "child", random_decoder(mixed_spec(), seed=1), overwrite=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(UserError, match="is not a model folder"):
        save(tmp_path / "thesis", decoder, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["child", "thesis"]


def test_overwriting_a_model_keeps_what_is_not_of_it(tmp_path, monkeypatch):
    out = save(tmp_path / "child", random_decoder(mixed_spec()))
    (out / "notes.txt").write_text("precious")
    (out / "runs" / "one").mkdir(parents=True)
    (out / "runs" / "one" / "last.ckpt").write_text("precious too")
    for stale in ("model-00001-of-00002.safetensors", "reward_head.safetensors", "added_tokens.json"):
        (out / stale).touch()
    before = (out / "model.safetensors").read_bytes()
    save(out, random_decoder(mixed_spec(), seed=1), overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    assert (out / "notes.txt").read_text() == "precious"
    assert (out / "runs" / "one" / "last.ckpt").read_text() == "precious too"
    assert not list(out.glob("model-*")) + list(out.glob("reward*")) + list(out.glob("added*"))

    def broken(*_):
        raise OSError("no more")

    after = (out / "model.safetensors").read_bytes()
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: broken() if path == out else rename(path, target))
    with pytest.raises(UserError, match="nothing was changed there"):
        save(out, random_decoder(mixed_spec(), seed=2), overwrite=True)
    assert (out / "model.safetensors").read_bytes() == after
    assert (out / "notes.txt").read_text() == "precious" and (out / "runs" / "one").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from lnlit.checkpoint.convert import import_model
from lnlit.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    import_model(sys.argv[1], sys.argv[2], overwrite=True)
except UserError as error:
    sys.exit(f"UserError: {error}")
"""


def test_a_save_that_fails_half_way_keeps_the_old_folder(tmp_path, tmp_path_factory):
    save_tiny(tmp_path / "source")
    folder = save(tmp_path / "child", random_decoder(mixed_spec()))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    script = tmp_path_factory.mktemp("script") / "full_disk.py"
    script.write_text(FULL_DISK)
    result = warm.run(script, tmp_path / "source", folder)
    assert result.returncode == 1
    assert "child: saving failed and nothing was changed there" in result.stderr
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["child", "source"]


def test_a_folder_of_a_newer_format_is_refused(tmp_path):
    folder = save(tmp_path / "child", random_decoder(mixed_spec()))
    data = json.loads((folder / "lnlit.json").read_text())
    (folder / "lnlit.json").write_text(json.dumps(data | {"format": 2}))
    with pytest.raises(UserError, match=r"format 2; this lnlit reads format 1. Update lnlit"):
        read_spec(folder)


def test_a_misspelt_key_in_the_spec_names_file_and_key(tmp_path):
    folder = save(tmp_path / "child", random_decoder(mixed_spec()))
    data = json.loads((folder / "lnlit.json").read_text())
    data["spec"]["layers"][1]["ffn"]["args"] = {"intermediate_sise": 72}
    (folder / "lnlit.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"layers\[1\].ffn.args: unknown key 'intermediate_sise'. Did you mean"):
        read_spec(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": {"vocab_size": True}}, "spec.vocab_size: expected a whole number, 1 or more, got True"),
        ({"spec": {"norm_eps": "x"}}, "spec.norm_eps: expected a finite number, 0 or more, got 'x'"),
        ({"spec": {"rope": {"theta": 0}}}, "spec.rope.theta: expected a finite number, above 0, got 0"),
        ({"spec": {"rope": {"scaling": {"type": "linear", "args": {"factor": "2"}}}}}, "factor: expected a positive"),
        ({"spec": {"tie_embeddings": "no"}}, "spec.tie_embeddings: expected true or false, got 'no'"),
        ({"provenance": [1]}, r"provenance: expected a mapping, got \[1\]"),
        ({"provenance": {"parent_provenance": "x"}}, "provenance: expected a mapping, got 'x'"),
    ],
)
def test_a_wrong_value_in_the_description_is_named(tmp_path, change, message):
    folder = save(tmp_path / "child", random_decoder(mixed_spec()))
    data = json.loads((folder / "lnlit.json").read_text())
    for key, value in change.items():
        data[key] = data[key] | value if key == "spec" else value
    (folder / "lnlit.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as refused:
        read_spec(folder)
        read_provenance(folder)
    assert str(folder / "lnlit.json") in str(refused.value)


def test_weights_that_contradict_a_tied_description_are_refused(tmp_path):
    folder = save(tmp_path / "tied", random_decoder(mixed_spec(tie_embeddings=True)))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight and model.embed_tokens.weight differ"):
        list(open_checkpoint(folder).weights(folder))


def test_what_another_process_wrote_meanwhile_is_not_replaced(tmp_path):
    decoder, other = random_decoder(mixed_spec()), random_decoder(mixed_spec(), seed=1)

    def overtaken():
        yield from canonical_weights(decoder)
        save(tmp_path / "child", other)

    with pytest.raises(UserError, match="child: exists already"):
        save_folder(tmp_path / "child", decoder.spec, overtaken(), tokenizer_from=None, provenance={})
    kept = load_file(tmp_path / "child" / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in canonical_weights(other))
