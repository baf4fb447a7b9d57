"""Adapters as PEFT writes and reads them. PEFT itself, on transformers' class of the base, is the oracle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lnlit.checkpoint.convert import export_model, import_model
from lnlit.checkpoint.folder import read_provenance, save_folder
from lnlit.checkpoint.load import load_weights
from lnlit.checkpoint.peft import fill_adapters, start_of
from lnlit.cli.main import main
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.layout import packed_runs
from lnlit.models.lora import LoRA, add_lora, init_lora
from lnlit.models.parts import packed
from lnlit.models.weights import canonical_weights
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.testing.tiny import save_tokenizer, tiny_folder

GQA = PartSpec("gqa", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8})
SWIGLU = PartSpec("swiglu", {"intermediate_size": 48})
LINEAR = PartSpec("single_linear")
VOCABULARY = 64
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
TOKENS = torch.arange(3, 27).view(2, 12)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def spec_of(*layers: BlockSpec, tied: bool = True) -> ModelSpec:
    return ModelSpec(VOCABULARY, 32, layers, 128, tie_embeddings=tied)


def alike(**attention) -> ModelSpec:
    return spec_of(*[BlockSpec(GQA.replace(**attention), SWIGLU)] * 2)


#: Model type -> its spec and what is adapted. The last has layers of every kind.
FAMILIES = {
    "llama": (alike(), ALL),
    "mistral": (alike(window=5), ("q_proj", "down_proj")),
    "qwen2": (alike(bias=True, output_bias=False), ALL),
    "qwen3": (alike(qk_norm=True), ALL),
    "smollm3": (alike(), ("q_proj", "v_proj")),
    "phi3": (alike(rotary_dim=4), ("q_proj", "v_proj", "up_proj", "gate_proj", "o_proj")),
    "nemotron-nas": (
        spec_of(
            BlockSpec(GQA, SWIGLU),
            BlockSpec(NOOP, SWIGLU.replace(intermediate_size=24)),
            BlockSpec(GQA.replace(num_kv_heads=1), NOOP),
            BlockSpec(LINEAR, LINEAR),
        ),
        (*ALL, "linear_attn"),
    ),
}


def base_folder(folder: Path, spec: ModelSpec, like: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    """A model folder of a family. Its weights are so large that attention, FFN and adapters all matter."""
    (like_folder := folder.with_name(f"{folder.name}-like")).mkdir(parents=True)
    (like_folder / "config.json").write_text(json.dumps({"model_type": like}))
    save_tokenizer(like_folder)
    decoder = build_decoder(spec, "cpu")
    weights = ((name, tensor.to(dtype)) for name, tensor in randomised(decoder))
    save_folder(folder, spec, weights, tokenizer_from=like_folder, provenance={})
    assert json.loads((folder / "config.json").read_text())["model_type"] == like
    return folder


def randomised(decoder: Decoder, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            scale = 0.2 if parameter.dim() > 1 else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return canonical_weights(decoder)


def run_of(base: Path, spec: ModelSpec, lora: LoRA, file: Path) -> Decoder:
    """The decoder of a LoRA run that has learned something, and its checkpoint at `file`."""
    decoder = build_decoder(spec, "cpu").eval()
    add_lora(decoder, lora)
    init_lora(decoder)
    load_weights(decoder, base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "lora_b" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    said = {"spec": spec.to_json(), "model": str(base.resolve()), "lora": lora.to_json()}
    said["packed_runs"] = packed_runs(decoder)
    torch.save({"state_dict": state, "lnlit": said}, file)
    return decoder


def started(base: Path, spec: ModelSpec, lora: LoRA) -> Decoder:
    """The decoder of a LoRA run that begins with the adapters of a folder."""
    decoder = build_decoder(spec, "cpu").eval()
    add_lora(decoder, lora)
    start = start_of(decoder, lora)
    load_weights(decoder, base)
    fill_adapters(decoder, start)
    return decoder


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(TOKENS)
    return found if isinstance(found, torch.Tensor) else found.logits


def decoder_of(folder: Path, spec: ModelSpec) -> Decoder:
    decoder = build_decoder(spec, "cpu").eval()
    load_weights(decoder, folder)
    return decoder


def transformers_of(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


# out


@pytest.mark.parametrize("like", FAMILIES)
def test_peft_computes_with_an_exported_adapter_what_the_run_does(tmp_path, like, record_property):
    spec, targets = FAMILIES[like]
    base = base_folder(tmp_path / "base", spec, like)
    decoder = run_of(base, spec, LoRA(rank=3, alpha=5.0, targets=targets), tmp_path / "last.ckpt")
    out = export_model(tmp_path / "last.ckpt", tmp_path / "adapter", adapter=True)
    model = peft.PeftModel.from_pretrained(transformers_of(base), out)
    off = difference(logits_of(model), logits_of(decoder))
    merged = export_model(tmp_path / "last.ckpt", tmp_path / "merged")
    record_property("logits_off", off)
    assert off <= 1e-5
    assert difference(logits_of(model), logits_of(decoder_of(merged, spec))) <= 1e-5
    assert difference(logits_of(model), logits_of(transformers_of(base))) > 0.1
    back = import_model(out, tmp_path / "back")
    assert difference(logits_of(decoder_of(back, spec)), logits_of(decoder)) <= 1e-5
    assert json.loads((back / "config.json").read_text())["model_type"] == like


def test_adapters_of_a_packed_matrix_go_out_and_come_back_as_several(tmp_path):
    """One A for gate and up, as `runtime.fuse_gate_up` trains them."""
    base = base_folder(tmp_path / "base", alike())
    lora = LoRA(rank=3, alpha=5.0, targets=("gate_up_proj", "q_proj"))
    decoder = run_of(base, packed(alike()), lora, tmp_path / "last.ckpt")
    out = export_model(tmp_path / "last.ckpt", tmp_path / "adapter", adapter=True)
    assert json.loads((out / "adapter_config.json").read_text())["target_modules"] == ["gate_proj", "q_proj", "up_proj"]
    model = peft.PeftModel.from_pretrained(transformers_of(base), out)
    assert difference(logits_of(model), logits_of(decoder)) <= 1e-5
    again = started(base, packed(alike()), replace(lora, adapter=str(out)))
    assert torch.equal(logits_of(again), logits_of(decoder))


def test_what_lies_in_one_matrix_gets_one_adapter_of_a_higher_rank(tmp_path):
    spec, targets = FAMILIES["phi3"]
    base = base_folder(tmp_path / "base", spec, "phi3")
    run_of(base, spec, LoRA(rank=3, alpha=5.0, targets=targets), tmp_path / "last.ckpt")
    out = export_model(tmp_path / "last.ckpt", tmp_path / "adapter", adapter=True)
    said = json.loads((out / "adapter_config.json").read_text())
    assert (said["r"], said["rank_pattern"]) == (3, {"qkv_proj": 6, "gate_up_proj": 6})
    assert (said["lora_alpha"], said["alpha_pattern"]) == (5, {"qkv_proj": 10, "gate_up_proj": 10})
    with pytest.raises(UserError, match=r"lora.adapter: .* has ranks \[3, 6\] and alphas \[5.0, 10.0\], and a run"):
        started(base, spec, LoRA(rank=3, alpha=5.0, targets=targets, adapter=str(out)))


def test_an_exported_folder_has_the_tokenizer_and_says_what_it_is_put_on(tmp_path, capsys):
    base = base_folder(tmp_path / "base", alike())
    run_of(base, alike(), LoRA(rank=2, alpha=3.5, dropout=0.1), tmp_path / "last.ckpt")
    assert main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "out"), "--adapter", "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "out") and f"puts it on {base}" in printed.err
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", *TOKENIZER}
    assert {t.dtype for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {torch.bfloat16}
    config = peft.LoraConfig.from_pretrained(tmp_path / "out")
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 3.5, 0.1)
    assert config.base_model_name_or_path == str(base)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_what_has_no_adapter_is_not_exported_as_one(tmp_path):
    base = base_folder(tmp_path / "base", alike())
    decoder = run_of(base, alike(), LoRA(rank=2, alpha=3.0), tmp_path / "lora.ckpt")
    saved = torch.load(tmp_path / "lora.ckpt", weights_only=True)

    def refused(message: str, name: str, /, state: dict | None = None, out: str = "out", **said) -> None:
        torch.save({"state_dict": state or saved["state_dict"], "lnlit": saved["lnlit"] | said}, tmp_path / name)
        with pytest.raises(UserError, match=message):
            export_model(tmp_path / name, tmp_path / out, adapter=True)
        assert not (tmp_path / "out").exists()

    plain = {f"decoder.{name}": tensor for name, tensor in decoder_of(base, alike()).state_dict().items()}
    refused(r"adapter: .*a.ckpt was trained without lora", "a.ckpt", plain, lora=None)
    head = saved["state_dict"] | {"head.weight": torch.ones(1, 32)}
    refused(r"adapter: .*b.ckpt has a reward model's head", "b.ckpt", head)
    refused(r"c.ckpt does not say what model", "c.ckpt", model=None)
    refused(r"model '/nowhere': no such file or folder", "d.ckpt", model="/nowhere")
    refused(r"out: .*base is read by this very command", "e.ckpt", out="base")
    with pytest.raises(UserError, match=r"adapter: .*base is a whole model"):
        export_model(base, tmp_path / "out", adapter=True)
    with pytest.raises(UserError, match="pipeline_stages: pads a model with layers"):
        export_model(tmp_path / "lora.ckpt", tmp_path / "out", adapter=True, pipeline_stages=2)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    for overwrite, message in ((False, "exists already"), (True, "exists and is no adapter, so it is not overwritten")):
        with pytest.raises(UserError, match=message):
            export_model(tmp_path / "lora.ckpt", tmp_path / "taken", adapter=True, overwrite=overwrite)
    out = export_model(tmp_path / "lora.ckpt", tmp_path / "adapter", adapter=True)
    (out / "notes.txt").touch()
    export_model(tmp_path / "lora.ckpt", out, adapter=True, overwrite=True)
    assert (out / "notes.txt").exists()
    assert difference(logits_of(decoder_of(import_model(out, tmp_path / "in"), alike())), logits_of(decoder)) <= 1e-5


def test_a_model_that_transformers_has_no_class_for_gets_no_adapter(tmp_path):
    """PEFT could not name its parts; the merged model is served by lnlit-vllm."""
    blocks = [BlockSpec(GQA, SWIGLU), BlockSpec(GQA.replace(qk_norm=True), SWIGLU)]
    base = base_folder(tmp_path / "base", spec_of(*blocks), "lnlit")
    run_of(base, spec_of(*blocks), LoRA(rank=2), tmp_path / "last.ckpt")
    with pytest.raises(
        UserError, match=r"adapter: PEFT puts adapters into transformers' class .* it has none: nemotron"
    ):
        export_model(tmp_path / "last.ckpt", tmp_path / "out", adapter=True)


# in


def made_by_peft(base: Path, folder: Path, **settings) -> peft.PeftModel:
    """PEFT's own model and folder, with factors that are not zero."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 3, "lora_alpha": 5, "target_modules": list(ALL)} | settings)
    model = peft.get_peft_model(transformers_of(base), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    return model


#: What PEFT can be told -> the settings.
SETTINGS = {
    "all linears": {"target_modules": "all-linear"},
    "an expression": {"target_modules": r".*\.1\..*(q_proj|down_proj)"},
    "rank-stabilised": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "DoRA and more": {"use_dora": True, "use_rslora": True, "alpha_pattern": {"v_proj": 2}},
    "another rank and alpha for some": {
        "rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\.down_proj": 2},
        "alpha_pattern": {r"layers\.0\.self_attn\.k_proj": 11},
    },
    "one layer": {"layers_to_transform": [1]},
    "all but one": {"exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    "the head": {"target_modules": ["lm_head", "v_proj"]},
    "drawn from a normal distribution": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("told", SETTINGS)
def test_what_peft_made_is_merged_as_peft_merges_it(tmp_path, told):
    spec = alike().replace(tie_embeddings=False)
    base = base_folder(tmp_path / "base", spec)
    model = made_by_peft(base, tmp_path / "adapter", **SETTINGS[told])
    out = import_model(tmp_path / "adapter", tmp_path / "out")
    ours = logits_of(decoder_of(out, spec))
    assert difference(ours, logits_of(decoder_of(base, spec))) > 0.1
    assert difference(ours, logits_of(model)) <= 1e-5
    assert difference(ours, logits_of(model.merge_and_unload())) <= 1e-5


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_stacked_matrices_is_merged(tmp_path, dora):
    spec, _ = FAMILIES["phi3"]
    base = base_folder(tmp_path / "base", spec, "phi3")
    targets = ["qkv_proj", "gate_up_proj", "down_proj"]
    model = made_by_peft(base, tmp_path / "adapter", target_modules=targets, use_dora=dora)
    out = import_model(tmp_path / "adapter", tmp_path / "out")
    assert difference(logits_of(decoder_of(out, spec)), logits_of(model)) <= 1e-5


def test_a_sum_is_rounded_once_to_the_dtype_of_the_base(tmp_path):
    base = base_folder(tmp_path / "base", alike(), dtype=torch.bfloat16)
    made_by_peft(base, tmp_path / "adapter")
    out = load_file(import_model(tmp_path / "adapter", tmp_path / "out") / "model.safetensors")
    before, factors = (
        load_file(base / "model.safetensors"),
        load_file(tmp_path / "adapter" / "adapter_model.safetensors"),
    )
    name = "model.layers.1.mlp.up_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{factor}.weight"].double() for factor in "AB")
    exact = before[f"{name}.weight"].double() + 5 / 3 * b @ a
    assert torch.equal(out[f"{name}.weight"], exact.float().bfloat16())
    assert torch.equal(out["model.norm.weight"], before["model.norm.weight"])


def test_an_adapters_own_tokenizer_comes_along_and_its_base_is_remembered(tmp_path):
    base = base_folder(tmp_path / "base", alike(qk_norm=True), "qwen3")
    made_by_peft(base, tmp_path / "adapter")
    out = import_model(tmp_path / "adapter", tmp_path / "plain")
    template = (base / "chat_template.jinja").read_text()
    assert (out / "chat_template.jinja").read_text() == template
    save_tokenizer(tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text(f"{template}{{# taught #}}")
    out = import_model(tmp_path / "adapter", tmp_path / "taught")
    assert (out / "chat_template.jinja").read_text() == f"{template}{{# taught #}}"
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen3"
    said = read_provenance(out)
    assert (said["parent"], said["adapter"]) == (str(base), str(tmp_path / "adapter"))


def test_another_base_of_the_same_shapes_is_told(tmp_path, capsys):
    base = base_folder(tmp_path / "base", alike())
    run_of(base, alike(), LoRA(rank=2, alpha=3.5), tmp_path / "last.ckpt")
    out = export_model(tmp_path / "last.ckpt", tmp_path / "adapter", adapter=True)
    other = tiny_folder(tmp_path / "other", alike(), seed=4)
    for number, (given, is_other) in enumerate([(base, False), (other, True)]):
        capsys.readouterr()
        import_model(out, tmp_path / f"merged{number}", base=str(given))
        assert (f"was trained on other weights than those of {given}" in capsys.readouterr().err) == is_other


def test_a_base_may_be_elsewhere(tmp_path, capsys):
    base = base_folder(tmp_path / "base", alike())
    model = made_by_peft(base, tmp_path / "adapter")
    expected = logits_of(model)
    capsys.readouterr()
    base.rename(tmp_path / "moved")
    command = ["import", str(tmp_path / "adapter"), str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "its base is not here: model" in error and "--base DIR" in error and error.strip().count("\n") == 0
    assert main([*command, "--base", str(tmp_path / "moved")]) == 0
    assert difference(logits_of(decoder_of(tmp_path / "out", alike())), expected) <= 1e-5
    with pytest.raises(UserError, match=r"base: is what a LoRA adapter is merged into, and .*moved is no adapter"):
        import_model(tmp_path / "moved", tmp_path / "other", base=str(base))
    with pytest.raises(UserError, match=r"its base .*adapter is an adapter itself; `lnlit import` that first"):
        import_model(tmp_path / "adapter", tmp_path / "other", base=str(tmp_path / "adapter"))
    other = base_folder(tmp_path / "wide", alike().replace(hidden_size=40))
    with pytest.raises(
        UserError, match=r"adapts model.layers.0.\S+ as \d+ x \d+, and in the base .*wide that is \d+ x"
    ):
        import_model(tmp_path / "adapter", tmp_path / "other", base=str(other))
    shorter = base_folder(tmp_path / "short", spec_of(BlockSpec(GQA, SWIGLU)))
    with pytest.raises(UserError, match=r"adapts model.layers.1.\S+, and the base .*short has no such linear"):
        import_model(tmp_path / "adapter", tmp_path / "other", base=str(shorter))
    assert not (tmp_path / "other").exists()
