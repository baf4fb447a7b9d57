"""Every method learns on several ranks what it learns on one, however they divide the data and the model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from method_runs import BASES, LITTLE, METHODS, SAVED, STEPS, run, write
from safetensors.torch import load_file
from torch import Tensor
from warm import torchrun

from lnlit.cli.main import main

LIMIT_S = 900  # of a machine that does much else
BY_RANKS = {2: ("ddp2", "fsdp2", "tp2"), 4: ("hsdp2x2", "fsdp2xtp2", "fsdp4", "hsdp2xtp2")}
CASES = [(name, method) for names in BY_RANKS.values() for name in names for method in LITTLE.get(name, METHODS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("methods_on_ranks")
    write(folder)
    return folder


@cache
def one(folder: Path, method: str) -> dict[str, Any]:
    return run(folder, method, "one", method in SAVED)


@cache
def several(folder: Path, ranks: int) -> None:
    script = Path(__file__).with_name("method_runs.py")
    torchrun(ranks, script, folder, ",".join(BY_RANKS[ranks]), cwd=folder, timeout=LIMIT_S)


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of an element."""
    assert found.keys() == expected.keys()
    return max((found[name] - value).abs().max().item() for name, value in expected.items())


@pytest.mark.parametrize("method", METHODS)
def test_one_rank_learns(folder, method):
    """Or comparisons would hold for runs that do nothing."""
    start, found = load_file(folder / BASES.get(method, "model") / "model.safetensors"), one(folder, method)
    untouched = {"lm_head.weight"} if method == "RewardModel" else set(start) if "adapters" in method else set()
    still = {name for name, value in start.items() if (found["weights"][name] - value).abs().max() < 1e-4}
    assert still == untouched
    assert all(value.abs().max() > 1e-4 for name, value in found["weights"].items() if "lora_b" in name)
    assert len(set(found["losses"])) == STEPS


@pytest.mark.parametrize(("name", "method"), CASES)
def test_several_ranks_learn_what_one_learns(folder, name, method, record_property):
    several(folder, next(ranks for ranks, names in BY_RANKS.items() if name in names))
    found, expected = torch.load(folder / f"{name}.{method}.pt", weights_only=True), one(folder, method)
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5, rel=1e-5)
    gradient = max(apart(*pair) for pair in zip(found["gradients"], expected["gradients"], strict=True))
    weight = apart(found["weights"], expected["weights"])
    record_property("gradient apart", gradient)
    record_property("weight apart", weight)
    assert gradient <= 1e-5 and weight <= 1e-5, (gradient, weight)


@pytest.mark.parametrize("name", ["fsdp2", "tp2", "fsdp2xtp2"])
def test_adapters_go_in_and_out_of_every_division(folder, name, tmp_path):
    """From one PEFT folder, through training, into another, as on one rank."""
    one(folder, "SFT-from-adapters")
    several(folder, next(ranks for ranks, names in BY_RANKS.items() if name in names))
    given = load_file(folder / "adapter" / "adapter_model.safetensors")
    written = {}
    for run_name in ("one", name):
        checkpoint = folder / f"{run_name}.SFT-from-adapters" / "checkpoints" / f"step-{STEPS}.ckpt"
        assert main(["export", str(checkpoint), str(tmp_path / run_name), "--adapter"]) == 0
        written[run_name] = load_file(tmp_path / run_name / "adapter_model.safetensors")
    assert apart(written[name], written["one"]) <= 1e-5
    assert all((written["one"][key] - tensor).abs().max() > 1e-4 for key, tensor in given.items())


@pytest.fixture(scope="module", params=["fsdp4", "fsdp2xtp2", "hsdp2x2"])
def checkpoint(folder, request) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of four ranks, and what they had when they saved it."""
    several(folder, 4)
    found = torch.load(folder / f"{request.param}.SFT.pt", weights_only=True)
    return folder / f"{request.param}.SFT" / "checkpoints" / f"step-{STEPS}.ckpt", found


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(value.dtype == found[name].dtype and torch.equal(found[name], value) for name, value in expected.items())


def test_a_checkpoint_of_four_ranks_is_the_same_on_one_and_two(folder, checkpoint, tmp_path):
    """Bit by bit: weights and moments where it is loaded, and what is exported there and by `lnlit export`."""
    path, saved = checkpoint
    for name in ("model", "texts.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    script = Path(__file__).with_name("method_runs.py")
    torchrun(2, script, tmp_path, "fsdp2,tp2", path, cwd=tmp_path, timeout=LIMIT_S)
    loaded = {name: torch.load(tmp_path / f"{name}.loaded.pt", weights_only=True) for name in ("fsdp2", "tp2")}
    loaded["fsdp1"] = run(tmp_path, "SFT", "fsdp1", checkpoint=str(path))
    assert main(["export", str(path), str(tmp_path / "alone.out")]) == 0
    for name, found in loaded.items():
        assert not found["losses"], "it was trained on"
        assert same(found["weights"], saved["weights"]), name
        assert same(found["moments"], saved["moments"]), name
    for name in ("alone", *loaded):
        assert same(load_file(tmp_path / f"{name}.out" / "model.safetensors"), saved["weights"]), name
