"""Blockwise local distillation with a parent that FSDP2, HSDP and tensor parallelism divide: the same library."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from distillery import Distillery
from mesh_distill import MESHES, ROWS, SETTINGS, STEPS
from safetensors.torch import load_file
from torch import Tensor
from warm import torchrun

from lnlit.search.choice import SLOTS, At
from lnlit.search.library import Library

PAIR = "kv1+i16"


@pytest.fixture(scope="module")
def libraries(tiny_parent, built_library, text_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    script = Path(__file__).with_name("mesh_distill.py")
    for ranks, names in ((2, "fsdp2,tp2"), (4, "fsdp2xtp2,hsdp2x2")):
        torchrun(ranks, script, tiny_parent, built_library, text_file, folder, names, cwd=folder, timeout=600)
    return folder


@pytest.fixture(scope="module")
def one(tiny_parent, built_library, text_file, tmp_path_factory) -> Library:
    distillery = Distillery(tiny_parent, built_library, text_file, tmp_path_factory.mktemp("one"), ROWS)
    library = distillery.fit("out", (), {"max_steps": STEPS}, **SETTINGS)
    assert library is not None
    return library


def learned(library: Library) -> dict[At, tuple[dict[str, Tensor], float]]:
    """(weights, error) of everything that was trained."""
    found = {}
    for layer, variants in enumerate(library.layers):
        for slot in (*SLOTS, "block"):
            for name, variant in variants.of(slot).items():
                if variant.trained_error is not None:
                    at = At(layer, slot, name)
                    found[at] = library.weights(at), variant.trained_error
    return found


def agree(library: Library | None, other: Library) -> None:
    assert library is not None
    found, expected = learned(library), learned(other)
    assert found.keys() == expected.keys() and len({at.slot for at in found}) == 3
    for at, (weights, error) in expected.items():
        assert found[at][1] == pytest.approx(error, rel=1e-5), at
        assert found[at][0].keys() == weights.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(found[at][0][name], tensor, rtol=0, atol=1e-5, msg=f"{at} {name}")


def test_one_rank_learns(one, built_library):
    """Or comparisons would hold for runs that do nothing."""
    before = Library.open(built_library)
    for at, (weights, _) in learned(one).items():
        if at.slot != "block":
            assert all((before.weights(at)[name] - tensor).abs().max() > 1e-4 for name, tensor in weights.items()), at


@pytest.mark.parametrize("name", ["fsdp2", "tp2", "tp2-grouped", "fsdp2xtp2", "fsdp2xtp2-grouped", "hsdp2x2"])
def test_a_mesh_trains_the_library_that_one_rank_trains(libraries, one, name):
    """Stopped after three of five steps, and resumed there."""
    agree(Library.open(libraries / name), one)


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2xtp2", "hsdp2x2"])
def test_a_run_on_a_mesh_goes_on_with_one_rank(libraries, one, name, tiny_parent, built_library, text_file, tmp_path):
    shutil.copytree(libraries / f"{name}-halved-run", tmp_path / "out-run")
    assert not (libraries / f"{name}-halved" / "library.json").exists()
    distillery = Distillery(tiny_parent, built_library, text_file, tmp_path, ROWS)
    agree(distillery.fit("out", (), {"max_steps": STEPS}, **SETTINGS), one)


@pytest.mark.parametrize("name", ["fsdp2", "tp2", "fsdp2xtp2", "hsdp2x2"])
def test_each_rank_holds_its_part_of_the_parent(libraries, tiny_parent, name):
    everything = sum(t.numel() for t in load_file(tiny_parent / "model.safetensors").values())
    data, tensor, replicas = MESHES[name]
    held = [int((libraries / f"{name}.held-{rank}").read_text()) for rank in range(data * tensor)]
    assert max(held) < 1.2 * everything * replicas / (data * tensor)  # norms are whole
