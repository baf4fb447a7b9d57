"""`lnlit export --quantize`: what is stored, what is read of it, and what is refused. tests/integration/
test_quantized_readers.py has what compressed-tensors, transformers and vLLM make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import mixed_spec, random_decoder, save_tiny
from safetensors.torch import load_file, save_file
from transformers import Phi3Config, Phi3ForCausalLM

from lnlit.checkpoint.convert import export_model
from lnlit.checkpoint.folder import save_folder
from lnlit.checkpoint.formats import open_checkpoint
from lnlit.checkpoint.quantized import SCHEMES, lines, quantized
from lnlit.errors import UserError
from lnlit.models.weights import canonical_weights
from lnlit.specs import BlockSpec, PartSpec

STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LINEARS = ("_proj.weight", "linear_attn.weight", "linear_mlp.weight")


def read(folder: Path) -> dict[str, torch.Tensor]:
    return dict(open_checkpoint(folder).weights(folder))


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replaces tensors of a folder, dots written as two underlines, or removes them."""
    file = folder / "model.safetensors"
    found = load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in found.items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})


@pytest.fixture(scope="module", params=SCHEMES)
def scheme(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def made(request, scheme, tmp_path_factory) -> tuple[Path, Path, str]:
    """(a folder with every kind of layer in some dtype, the same quantised, the scheme)."""
    out = tmp_path_factory.mktemp("made")
    decoder = random_decoder(mixed_spec())
    whole = save_folder(out / "whole", decoder.spec, canonical_weights(decoder), tokenizer_from=None, provenance={})
    export_model(whole, out / "source", dtype=request.param)
    return out / "source", export_model(out / "source", out / "small", quantize=scheme), scheme


def test_a_row_by_hand():
    numbers, scales = quantized("w", torch.tensor([[255.0, -127.0, 63.0, -255.0], [0.0] * 4]), SCHEMES["int8"])
    assert numbers.tolist() == [[127, -64, 32, -128], [0, 0, 0, 0]]  # of 127.5, -63.5, 31.5, -127.5
    assert scales[0].item() == 2.0 and scales[1].item() > 0
    numbers, scales = quantized("w", torch.tensor([[896.0, -300.0, 1.0, 4e-3]]), SCHEMES["fp8"])
    # Steps of float8 are 16 from 128 on and 1/512 below 1/64: 150 lies between 144 and 160.
    assert (numbers.float().tolist(), scales.item()) == ([[448.0, -144.0, 0.5, 1 / 512]], 2.0)


def test_layers_are_quantised_and_all_else_is_as_it_was(made):
    source, small, scheme = made
    before, after = load_file(source / "model.safetensors"), load_file(small / "model.safetensors")
    matrices = {name for name in before if name.endswith(LINEARS)}
    assert len(matrices) == 23 and after.keys() == before.keys() | {f"{name}_scale" for name in matrices}
    for name, tensor in before.items():
        if name not in matrices:
            assert torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype
            continue
        scales = after[f"{name}_scale"]
        assert (after[name].dtype, scales.dtype, scales.shape) == (STORED[scheme], tensor.dtype, (len(tensor), 1))
        size = tensor.float().abs()
        step = scales.float() if scheme == "int8" else size / 8 + scales.float() / 512
        # Half a step, and where the scale was rounded down or the row ends at 127.5 steps, what is cut off there.
        allowed = step / 2 + size.amax(1, keepdim=True) * {torch.bfloat16: 2**-8}.get(tensor.dtype, 2**-10)
        assert bool(((after[name].float() * scales.float() - tensor.float()).abs() <= allowed).all())


def test_it_is_read_as_it_is_stored(made):
    source, small, _ = made
    stored, found = load_file(small / "model.safetensors"), read(small)
    assert found.keys() == read(source).keys()
    for name, tensor in found.items():
        scales = stored.get(f"{name}_scale")
        expected = stored[name] if scales is None else stored[name].to(scales.dtype) * scales
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype
    for name, part in open_checkpoint(small).slices(small):
        rows = slice(1, max(part.shape[0] // 2, 2))
        index = (rows, slice(2, 5))[: len(part.shape)]
        assert torch.equal(part[index], found[name][index])


def test_configs_say_so(made):
    source, small, scheme = made
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, small))
    quantization = after.pop("quantization_config")
    assert after == before  # the dtype too: it is what the model is computed in
    assert (quantization["quant_method"], quantization["ignore"]) == ("compressed-tensors", ["lm_head"])
    record = json.loads((small / "lnlit.json").read_text())
    assert record["quantization"]["scheme"] == scheme
    assert any("eight-bit" in reason for reason in record["obstacles"]["mlx-lm"])


def test_the_report_adds_up(made):
    source, small, scheme = made
    record = json.loads((small / "lnlit.json").read_text())["quantization"]
    before, after = load_file(source / "model.safetensors"), load_file(small / "model.safetensors")
    for key, tensors in (("bytes_before", before), ("bytes_after", after)):
        assert sum(kind[key] for kind in record["kinds"].values()) == sum(each.nbytes for each in tensors.values())
    errors = []
    for name, tensor in before.items():
        if name.endswith("down_proj.weight"):
            stood_for = after[name].double() * after[f"{name}_scale"].double()
            errors.append(float((tensor.double() - stood_for).norm() / tensor.double().norm()))
    assert record["kinds"]["down_proj"]["largest_relative_error"] == pytest.approx(max(errors), rel=1e-5)
    kept = {name: kind["kept"] for name, kind in record["kinds"].items() if "kept" in kind}
    assert kept.keys() == {"embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm"}
    text = "\n".join(lines(record))
    assert f"{scheme}: a scale per row" in text and "kept: its error would be one of the logits" in text


def test_shards_hold_the_same(scheme, tmp_path):
    decoder, whole = random_decoder(mixed_spec()), tmp_path / "whole"
    for folder, limit in ((whole, 2**30), (tmp_path / "shards", 5_000)):
        weights = canonical_weights(decoder)
        settings = {"max_shard_bytes": limit, "scheme": SCHEMES[scheme]}
        save_folder(folder, decoder.spec, weights, tokenizer_from=None, provenance={}, **settings)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 5
    found = read(tmp_path / "shards")
    assert all(torch.equal(tensor, found[name]) for name, tensor in read(whole).items())


def test_stacked_matrices(scheme, tmp_path):
    """Phi-3 stores three projections as one matrix. Rows have scales of their own, so it is the same either way."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    torch.manual_seed(0)
    Phi3ForCausalLM(Phi3Config(vocab_size=97, pad_token_id=0, **sizes)).save_pretrained(tmp_path / "source")
    small = export_model(tmp_path / "source", tmp_path / "small", quantize=scheme)
    tensors = load_file(small / "model.safetensors")
    name = "model.layers.1.self_attn.qkv_proj.weight"
    assert (tensors[name].dtype, tensors[f"{name}_scale"].shape) == (STORED[scheme], (96, 1))
    found = read(small)
    for name, tensor in read(tmp_path / "source").items():
        if name.endswith(LINEARS):
            numbers, scales = quantized(name, tensor, SCHEMES[scheme])
            tensor = numbers.to(tensor.dtype) * scales
        assert torch.equal(found[name], tensor)


def test_a_tied_embedding_is_kept_once(scheme, tmp_path):
    save_tiny(tmp_path / "source", tie_word_embeddings=True)
    small = export_model(tmp_path / "source", tmp_path / "small", quantize=scheme)
    assert "lm_head.weight" not in load_file(small / "model.safetensors")
    record = json.loads((small / "lnlit.json").read_text())["quantization"]["kinds"]
    assert record["embed_tokens"]["kept"] == "it is looked up, and is the head as well"
    name = "model.embed_tokens.weight"
    assert torch.equal(read(small)[name], read(tmp_path / "source")[name])


def test_biases_are_kept(scheme, tmp_path):
    save_tiny(tmp_path / "source", attention_bias=True)
    small = export_model(tmp_path / "source", tmp_path / "small", quantize=scheme)
    name = "model.layers.0.self_attn.q_proj.bias"
    assert torch.equal(read(small)[name], read(tmp_path / "source")[name])


def test_large_matrices_are_quantised_in_parts(monkeypatch, scheme):
    weight = torch.randn(37, 11)
    whole = quantized("w", weight, SCHEMES[scheme])
    monkeypatch.setattr("lnlit.checkpoint.quantized._AT_ONCE", 23)
    assert all(
        torch.equal(a.float(), b.float()) for a, b in zip(whole, quantized("w", weight, SCHEMES[scheme]), strict=True)
    )


def test_what_is_quantised_is_not_quantised_again_but_can_be_undone(made, tmp_path):
    _, small, scheme = made
    for again in SCHEMES:
        with pytest.raises(UserError, match=rf"in {scheme} already, and would lose more. Quantise .*source instead"):
            export_model(small, tmp_path / "out", quantize=again)
    plain = export_model(small, tmp_path / "plain")
    assert "quantization" not in json.loads((plain / "lnlit.json").read_text())
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    stored, found = load_file(plain / "model.safetensors"), read(small)
    assert all(torch.equal(tensor, found[name]) for name, tensor in stored.items()) and stored.keys() == found.keys()


def test_an_unknown_scheme_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"scheme 'int7' is unknown. Did you mean 'int8'\? Allowed: fp8, int8"):
        export_model(tmp_path, tmp_path / "out", quantize="int7")
    with pytest.raises(UserError, match="quantize: stores the matrices of layers, and an adapter has none"):
        export_model(tmp_path, tmp_path / "out", quantize="int8", adapter=True)


@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_what_is_not_finite_is_refused(tmp_path, name, number):
    save_tiny(tmp_path / "source")
    tensor = load_file(tmp_path / "source" / "model.safetensors")[name]
    tensor.view(-1)[3:5] = number
    change(tmp_path / "source", **{name: tensor})
    with pytest.raises(UserError, match=rf"tensor {name} holds 2 numbers that are not finite"):
        export_model(tmp_path / "source", tmp_path / "out", quantize="int8")
    assert not (tmp_path / "out").exists()


def test_dtypes_that_cannot_are_refused(tmp_path, scheme):
    save_tiny(tmp_path / "source")
    name = "model.layers.0.mlp.up_proj.weight"
    weight = load_file(tmp_path / "source" / "model.safetensors")[name]
    change(tmp_path / "source", **{name: weight.double()})
    with pytest.raises(UserError, match=rf"{name} is float64; {scheme} is made of .* Add --dtype bfloat16"):
        export_model(tmp_path / "source", tmp_path / "out", quantize=scheme)
    weight[5] = 1e-5  # a hundredth of float16's last place
    change(tmp_path / "source", **{name: weight})
    with pytest.raises(UserError, match=rf"{name} has a row .* float16 cannot hold its scale .*Add --dtype bfloat16"):
        export_model(tmp_path / "source", tmp_path / "out", quantize=scheme, dtype="float16")
    small = export_model(tmp_path / "source", tmp_path / "out", quantize=scheme, dtype="bfloat16")
    assert read(small)[name][5].float() == pytest.approx(1e-5, rel=2**-8)


def test_what_only_lnlit_computes_is_refused_by_its_first_layer(tmp_path):
    windows = PartSpec("gqa", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 10, "rotary_dim": 4})
    spec = mixed_spec()
    spec = spec.replace(layers=(*spec.layers[:4], BlockSpec(windows, spec.layers[4].ffn), spec.layers[5]))
    weights = canonical_weights(random_decoder(spec))
    source = save_folder(tmp_path / "source", spec, weights, tokenizer_from=None, provenance={})
    with pytest.raises(
        UserError, match=r"only lnlit's own modules compute this model.*layers\[4\]\.attention.*without"
    ):
        export_model(source, tmp_path / "out", quantize="int8")
    assert not (tmp_path / "out").exists()


def test_a_model_without_matrices_is_refused(tmp_path):
    noop = PartSpec("noop")
    spec = mixed_spec(layers=(BlockSpec(noop, noop),))
    weights = canonical_weights(random_decoder(spec))
    source = save_folder(tmp_path / "source", spec, weights, tokenizer_from=None, provenance={})
    with pytest.raises(UserError, match="no layer with a matrix to store in int8"):
        export_model(source, tmp_path / "out", quantize="int8")


def test_a_damaged_folder_is_never_read_as_another_model(tmp_path):
    save_tiny(tmp_path / "source")
    small = export_model(tmp_path / "source", tmp_path / "small", quantize="int8")
    name, file = "model.layers.0.mlp.up_proj.weight", small / "model.safetensors"
    whole, record = file.read_bytes(), json.loads((small / "lnlit.json").read_text())
    scales = load_file(file)[f"{name}_scale"]
    for damage, message in (
        ({f"{name}_scale": None}, rf"{name} is quantised and needs scales .* there is no such tensor"),
        ({f"{name}_scale": scales.T}, rf"{name} is quantised and needs scales .*\[56, 1\].* there is shape \[1, 56\]"),
        ({f"{name}_scale": torch.ones(56, 1, dtype=torch.int8)}, rf"{name} is quantised and needs scales"),
        ({name: torch.ones(56, 32)}, rf"tensor {name}_scale is unexpected"),
        ({name: torch.ones(56, 32).to(torch.float8_e4m3fn)}, "dtype F8_E4M3; quantised weights are not read"),
    ):
        change(small, **damage)
        with pytest.raises(UserError, match=message):
            read(small)
        file.write_bytes(whole)
    for quantization, message in (
        (None, "dtype I8; quantised weights are not read"),
        ({"scheme": "int5"}, "quantization 'int5'; this lnlit reads fp8 and int8. Update lnlit"),
        ({}, "quantization None; this lnlit reads"),
    ):
        (small / "lnlit.json").write_text(json.dumps(record | {"quantization": quantization}))
        with pytest.raises(UserError, match=message):
            read(small)
    (small / "lnlit.json").unlink()  # a folder of somebody else
    with pytest.raises(UserError, match=r"the checkpoint is quantised \(compressed-tensors\)"):
        read(small)
