"""`lnlit search fuse`: model folder to model folder, with the plan, the dependencies and their picture."""

from __future__ import annotations

import json

import pytest
import torch

from lnlit.checkpoint.folder import read_provenance
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.data.sources import TextFileSource
from lnlit.data.text import TextSample
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.search.dependency import block_dependency
from lnlit.specs import NOOP, BlockSpec
from lnlit.stages.fuse import fuse
from lnlit.testing.tiny import attention, swiglu, tiny_folder, tiny_spec

FULL = BlockSpec(attention(), swiglu())
RUN = tuple(BlockSpec(NOOP, swiglu(width)) for width in (48, 16, 33, 64, 24))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("fuse") / "model", tiny_spec().replace(layers=(FULL, *RUN, FULL)))


def loaded(folder):
    decoder = build_decoder(read_spec(folder), "cpu").eval()
    load_weights(decoder, folder)
    return decoder


def test_a_fused_folder_says_what_became_of_each_layer(model, tmp_path, capsys):
    out = fuse(str(model), str(tmp_path / "out"))
    assert [block.ffn.args["intermediate_size"] for block in read_spec(out).layers] == [48, 161, 24, 48]
    provenance = read_provenance(out)
    assert provenance["layers"] == [[0], [1, 2, 3, 4], [5], [6]] and provenance["parent"] == str(model)
    plan = {"groups": [[1, 2, 3, 4]], "left_out": [5], "norm": "own"}
    assert json.loads((out / "fusion" / "plan.json").read_text()) == provenance["plan"] == plan
    assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert not (out / "fusion" / "dependency.json").exists()
    told = capsys.readouterr().err
    assert "fuse 1-4: 7 layers become 4" in told and "vLLM, vLLM with lnlit-vllm can run this architecture" in told
    assert "mlx-lm cannot: it knows FFN widths as ffn_mult only, and that says multiples of 256 (layers[0].ffn" in told


@torch.no_grad()
def test_the_folder_computes_the_parallel_sum(model, tmp_path):
    parent, child = loaded(model), loaded(fuse(str(model), str(tmp_path / "out"), leave_out=0, max_width=100))
    assert [b.ffn.args["intermediate_size"] for b in child.spec.layers] == [48, 97, 88, 48]
    x = parent.embed_tokens(torch.arange(30)[None])
    expected = x + sum(parent.layers[i].add_ffn(x) - x for i in (1, 2, 3))
    assert (child.layers[1].add_ffn(x) - expected).abs().max() <= 1e-5


def test_a_run_can_be_removed_or_reversed_for_comparison(model, tmp_path):
    removed = read_spec(fuse(str(model), str(tmp_path / "removed"), method="remove"))
    turned = fuse(str(model), str(tmp_path / "turned"), method="reverse")
    assert [block.ffn.args["intermediate_size"] for block in removed.layers] == [48, 64, 24, 48]
    assert [block.ffn.args["intermediate_size"] for block in read_spec(turned).layers] == [48, 64, 33, 16, 48, 24, 48]
    assert read_provenance(turned)["method"] == "reverse"


def test_a_written_plan_is_followed(model, tmp_path):
    first = fuse(str(model), str(tmp_path / "first"), max_width=70)
    again = fuse(str(model), str(tmp_path / "again"), plan=str(first / "fusion" / "plan.json"))
    assert read_spec(again) == read_spec(first)
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"groups": [[0, 1]]}))
    with pytest.raises(UserError, match=r"layer 0 .*is not a lone FFN"):
        fuse(str(model), str(tmp_path / "bad"), plan=str(bad))
    assert not (tmp_path / "bad").exists()


def test_bytes_are_those_of_the_stored_weights(model, tmp_path):
    four = 4 * (3 * 32 * 97 + 32)  # layers 1 to 3 in fp32
    out = fuse(str(model), str(tmp_path / "out"), leave_out=2, max_bytes=four)
    assert read_provenance(out)["plan"]["groups"] == [[1, 2, 3]]
    out = fuse(str(model), str(tmp_path / "less"), leave_out=2, max_bytes=four - 1)
    assert read_provenance(out)["plan"]["groups"] == [[2, 3]]


def test_a_model_without_runs_is_copied_and_told(tmp_path, capsys):
    model = tiny_folder(tmp_path / "model")
    out = fuse(str(model), str(tmp_path / "out"))
    assert (out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert "nothing to fuse" in capsys.readouterr().err


@pytest.fixture
def data(tmp_path) -> TextSample:
    for index in range(4):
        text = f"{index}: the quick brown fox jumps over the lazy dog, again and again. "
        (tmp_path / f"text-{index}.txt").write_text(text)
    return TextSample(TextFileSource(str(tmp_path / "text-*.txt")), rows=4, length=32)


def test_dependencies_are_measured_on_a_text(model, tmp_path, data):
    out = fuse(str(model), str(tmp_path / "out"), data=data)
    found = json.loads((out / "fusion" / "dependency.json").read_text())
    expected = block_dependency(LayerwiseDecoder(loaded(model)), data.tokens(str(model)))
    assert found["layers"] == list(range(7)) and found["tokens"] == 128 and found["parallel_windows"] == []
    assert torch.allclose(torch.tensor(found["matrix"]), torch.tensor(expected.matrix), atol=1e-5)
    assert (out / "fusion" / "dependency.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_fails_leaves_no_folder(model, tmp_path, data, monkeypatch):
    def broken(*_):
        raise RuntimeError("no picture")

    monkeypatch.setattr("lnlit.stages.fuse.dependency_map", broken)
    with pytest.raises(RuntimeError, match="no picture"):
        fuse(str(model), str(tmp_path / "made" / "out"), data=data)
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize("settings", [{"max_width": 70}, {"max_bytes": 1}, {"norm": "last"}, {"leave_out": 0}])
def test_a_plan_and_what_it_would_overrule_are_refused_together(model, tmp_path, settings):
    with pytest.raises(UserError, match="a plan says all of norm, leave_out, max_bytes, max_width"):
        fuse(str(model), str(tmp_path / "out"), plan="plan.json", **settings)


def test_an_existing_folder_is_refused_before_any_work(model, tmp_path):
    fuse(str(model), str(tmp_path / "out"))
    with pytest.raises(UserError, match="exists already"):
        fuse(str(model), str(tmp_path / "out"))
    fuse(str(model), str(tmp_path / "out"), overwrite=True)
    with pytest.raises(UserError, match="read by this very command"):
        fuse(str(model), str(model), overwrite=True)
