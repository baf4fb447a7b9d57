"""Two ranks that share a model copy it shard by shard, and what they save is read by as many, by one, and by export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_runs import run, write_prompts
from snapshot_runs import BEGUN, SINGLE, STEPS, sharded
from torch import Tensor
from warm import torchrun

from lnlit.checkpoint.lightning import LightningCheckpoint
from lnlit.cli.main import main
from lnlit.testing.tiny import tiny_folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[str, str]:
    """(model, prompts)"""
    folder = tmp_path_factory.mktemp("snapshot")
    return str(tiny_folder(folder / "model")), write_prompts(folder / "prompts.jsonl")


@pytest.fixture(scope="module")
def found(files) -> dict[str, Any]:
    folder = Path(files[1]).parent
    torchrun(2, Path(__file__).with_name("snapshot_runs.py"), *files, folder, cwd=folder, timeout=600)
    ranks = [torch.load(folder / f"found.{rank}", weights_only=True) for rank in (0, 1)]
    assert apart(ranks[0]["whole"], ranks[1]["whole"]) == 0
    return ranks[0]


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of a weight."""
    return max((weight - other["weights"][name]).abs().max().item() for name, weight in one["weights"].items())


def checkpoint(files, run: str) -> Path:
    (path,) = (Path(files[1]).parent / run / "checkpoints").iterdir()
    return path


def test_two_ranks_learn_what_one_learns(files, found, record_property):
    alone = run(*files, "rpo_by_two_rollouts", steps=STEPS, precision=SINGLE)
    assert found["whole"]["seen"] == alone["seen"]
    record_property("weight apart", difference := apart(found["whole"], alone))
    assert difference <= 1e-5
    assert apart(found["begun"], alone) > 1e-3  # or nothing would be learned


def test_two_ranks_go_on_with_their_parts_of_the_copy(found):
    assert found["begun"]["seen"] + found["resumed"]["seen"] == found["whole"]["seen"]
    assert apart(found["resumed"], found["whole"]) == 0


def test_one_rank_goes_on_with_what_two_have_saved(files, found, tmp_path):
    shutil.copytree(checkpoint(files, "begun"), tmp_path / "checkpoints" / f"step-{BEGUN}.ckpt")
    alone = sharded(*files, 1, STEPS, tmp_path)
    assert found["begun"]["seen"] + alone["seen"] == found["whole"]["seen"]
    assert apart(alone, found["whole"]) <= 1e-5


def test_what_two_ranks_have_saved_is_exported_without_the_copy(files, found, tmp_path):
    path = checkpoint(files, "begun")
    exported: dict[str, Tensor] = dict(LightningCheckpoint().weights(path))
    assert exported.keys() == {f"model.{name}" for name in found["begun"]["weights"]}
    assert all(torch.equal(exported[f"model.{name}"], value) for name, value in found["begun"]["weights"].items())
    assert main(["export", str(path), str(tmp_path / "out")]) == 0
