"""Building a library: what it measures, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.load import by_layer
from lnlit.data.sources import TextFileSource
from lnlit.data.text import TextSample
from lnlit.errors import UserError
from lnlit.models.build import block_weights, build_block, load_block
from lnlit.models.weights import canonical_weights
from lnlit.search.choice import SLOTS, BlockChoice
from lnlit.search.library import Library, LibraryWriter, layer_file
from lnlit.search.space import Candidates
from lnlit.stages.library import build_library
from lnlit.testing.tiny import mixed_spec, tiny_decoder, tiny_folder

SMALL = Candidates(widths=(0.67, 0.33), width_multiple=16)


@pytest.fixture
def sample(documents: str) -> TextSample:
    return TextSample(TextFileSource(documents), rows=4, length=64)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("mixed") / "model", mixed_spec())


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@torch.no_grad()
def test_initial_errors_are_those_of_whole_blocks_in_the_parent(mixed, sample, tmp_path):
    """Every kind of parent block; a candidate stands beside the parent's other half and sees the parent's input."""
    library = Library.open(build_library(str(mixed), sample, str(tmp_path / "out"), SMALL, batch_tokens=3 * 64 + 5))
    parent, tokens = tiny_decoder(mixed_spec()), sample.tokens(str(mixed))
    x = parent.embed(tokens)
    around, rope = parent.block_inputs(tokens, x.dtype)
    checked = 0
    for index, block in enumerate(parent.layers):
        attend, own = around.layer(index), block_weights(block)  # type: ignore[arg-type]
        wanted = block(x, attend, rope)
        for slot in SLOTS:
            for name, variant in getattr(library.layers[index], slot).items():
                choice = [name if slot == s else p for s, p in zip(SLOTS, library.layers[index].parent, strict=True)]
                child = build_block(library.spec, index, library.block_spec(index, BlockChoice(*choice)))
                got = load_block(child, library.block_weights(index, BlockChoice(*choice), own))(x, attend, rope)
                error = float((got - wanted).square().mean() / wanted.square().mean())
                assert variant.parent or variant.init_error == pytest.approx(error, rel=1e-4)
                assert not variant.parent or error == 0
                checked += not variant.parent
        x = wanted
    assert checked == 20


def test_channels_that_are_hard_to_replace_beat_the_first_ones(tiny_parent, sample, tmp_path, monkeypatch):
    def mean_error(out: str) -> float:
        library = Library.open(build_library(str(tiny_parent), sample, str(tmp_path / out), SMALL))
        return sum(layer.ffn["i16"].init_error or 0 for layer in library.layers) / 2

    scored = mean_error("scored")
    monkeypatch.setattr(
        "lnlit.search.starts.removal_order", lambda gram, down: torch.arange(float(down.shape[1])).flip(0)
    )
    assert scored < mean_error("first")


@pytest.mark.parametrize("rows", [1, 4])
def test_no_fit_makes_an_ffn_worse_on_its_text(tiny_parent, sample, tmp_path, monkeypatch, rows):
    """A matrix that is fitted starts from nothing, so it is nearer to the parent than nothing is."""
    sample, errors = dataclasses.replace(sample, rows=rows), []
    for number in range(2):
        library = Library.open(build_library(str(tiny_parent), sample, str(tmp_path / f"{number}"), SMALL))
        errors.append([{name: variant.init_error for name, variant in layer.ffn.items()} for layer in library.layers])
        monkeypatch.setattr("lnlit.search.starts.fitted", lambda start, equations: start)
    for fitted, plain in zip(*errors, strict=True):
        assert fitted["linear"] < fitted["noop"] == plain["noop"] == pytest.approx(plain["linear"])
        assert fitted["i16"] <= plain["i16"] and fitted["i32"] <= plain["i32"]


def test_an_interrupted_build_goes_on_and_ends_the_same(tiny_parent, sample, built_library, tmp_path, monkeypatch):
    write, out = LibraryWriter.write, tmp_path / "out"

    def fail_at_1(self, layer, *rest):
        if layer == 1:
            raise KeyboardInterrupt
        write(self, layer, *rest)

    monkeypatch.setattr(LibraryWriter, "write", fail_at_1)
    with pytest.raises(KeyboardInterrupt):
        build_library(str(tiny_parent), sample, str(out), SMALL)
    assert sorted(file.name for file in out.iterdir()) == ["calibration.safetensors", "layer-000.safetensors"]
    stamp = layer_file(out, 0).stat().st_mtime_ns
    monkeypatch.setattr(LibraryWriter, "write", write)
    build_library(str(tiny_parent), sample, str(out), SMALL)
    assert layer_file(out, 0).stat().st_mtime_ns == stamp
    assert files(out) == files(built_library)


def test_an_unfinished_library_of_other_settings_is_left_alone(tiny_parent, sample, tmp_path, built_library):
    layer_file(tmp_path, 0).write_bytes(layer_file(built_library, 0).read_bytes())
    with pytest.raises(UserError, match="another model, calibration or set of candidates"):
        build_library(str(tiny_parent), dataclasses.replace(sample, rows=3), str(tmp_path), SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["layer-000.safetensors"]


def test_what_the_library_was_made_from_is_in_it(built_library, tiny_parent, sample):
    data = json.loads((built_library / "library.json").read_text())
    assert data["model"] == str(tiny_parent)
    assert data["parent_sha256"] == fingerprint(str(tiny_parent))
    assert data["calibration"]["tokens"] == 4 * 64 and len(data["calibration"]["sha256"]) == 64
    assert data["provenance"]["candidates"]["width_multiple"] == 16


def test_bfloat16_passes_change_errors_by_rounding_only(tiny_parent, sample, built_library, tmp_path):
    exact = Library.open(built_library)
    rounded = Library.open(build_library(str(tiny_parent), sample, str(tmp_path / "out"), SMALL, dtype="bfloat16"))
    for one, two in zip(exact.layers, rounded.layers, strict=True):
        for slot in SLOTS:
            errors = [[v.init_error or 0 for v in getattr(layer, slot).values()] for layer in (one, two)]
            assert errors[0] == pytest.approx(errors[1], rel=0.1, abs=1e-3)


def test_text_longer_than_the_context_is_refused(tiny_parent, sample, tmp_path):
    with pytest.raises(UserError, match=r"data.length 300 is longer than the model's context of 256"):
        build_library(str(tiny_parent), dataclasses.replace(sample, rows=1, length=300), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_come_by_layer_in_whatever_order_a_checkpoint_has_them():
    decoder = tiny_decoder(mixed_spec())
    weights = list(canonical_weights(decoder))
    straight, backwards = list(by_layer(decoder.spec, weights)), list(by_layer(decoder.spec, reversed(weights)))
    assert len(straight) == len(decoder.layers) + 2
    for one, two, block in zip(straight[1:-1], backwards[1:-1], decoder.layers, strict=True):
        assert one.keys() == two.keys() == block_weights(block).keys()  # type: ignore[arg-type]
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    with pytest.raises(UserError, match=r"lacks tensor model.norm.weight"):
        list(by_layer(decoder.spec, [pair for pair in weights if pair[0] != "model.norm.weight"]))


@pytest.mark.parametrize("name", ["self_attn.v_proj", "mlp.up_proj", "input_layernorm"])
def test_a_parent_that_is_not_finite_is_named_with_layer_and_candidate(sample, tmp_path, name):
    model = tiny_folder(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights[f"model.layers.1.{name}.weight"].flatten()[5] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layer 1: the attention candidate kv1 has the error nan.* Check the parent's"):
        build_library(str(model), sample, str(tmp_path / "out"), SMALL)
