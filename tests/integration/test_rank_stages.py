"""Stages on several ranks end in the folder that their weights are, and their checkpoints fit other divisions."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from safetensors.torch import load_file
from two_rank_stages import MORE, OPTIMIZER, STEPS, chats, resume, rows
from warm import torchrun

from lnlit.callbacks.checkpoints import Checkpoint, checkpoint_folder
from lnlit.checkpoint.formats import read_spec
from lnlit.cli.main import main
from lnlit.errors import UserError
from lnlit.modules.sft import SFT
from lnlit.specs import NOOP, BlockSpec, PartSpec
from lnlit.testing.tiny import attention, swiglu, tiny_folder, tiny_spec

LIMIT_S = 300  # waits that end, on a machine that does much else
#: With fresh moments, or those of another parameter, weights would differ by about a learning rate after a step.
TOLERANCE = 0.05 * OPTIMIZER.learning_rate
stages = pytest.mark.parametrize("stage", ["chat-ddp", "chat-dp2", "policy-ddp", "policy-dp2"])


def launch(folder: Path, part: str, ranks: int) -> None:
    script = Path(__file__).with_name("two_rank_stages.py")
    torchrun(ranks, script, folder, part, str(LIMIT_S), cwd=folder, timeout=LIMIT_S + 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    full, linear = BlockSpec(attention(), swiglu()), PartSpec("single_linear")
    layers = (full, BlockSpec(linear, linear), BlockSpec(NOOP, NOOP), BlockSpec(NOOP, swiglu(32)))
    tiny_folder(folder / "model", tiny_spec().replace(layers=layers))
    rows(folder)
    launch(folder, "two", 2)
    return folder


@pytest.fixture(scope="module")
def one_rank(folder) -> str:
    return resume(folder, "chat-dp2", "dp1")


@pytest.fixture(scope="module")
def three_ranks(folder) -> str:
    launch(folder, "three", 3)
    return "chat-dp2-dp3"


def checkpoint(folder: Path, run: str, step: int) -> Path:
    return checkpoint_folder(folder / run) / f"step-{step}.ckpt"


def saved(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights as Lightning itself puts the shards together, by the names of model folders."""
    whole = _load_distributed_checkpoint(path) if path.is_dir() else torch.load(path, weights_only=True)
    names = {name: name.replace("decoder.", "model.", 1) for name in whole["state_dict"]}
    return {names[name]: tensor for name, tensor in whole["state_dict"].items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def far_apart(folder: Path, one: str, other: str) -> float:
    """The largest difference between two runs' last weights."""
    found, expected = (saved(checkpoint(folder, run, MORE)) for run in (one, other))
    assert found.keys() == expected.keys()
    return max((found[key] - expected[key]).abs().max().item() for key in found)


@stages
def test_what_is_exported_is_what_the_shards_are(folder, stage):
    """In float32, although the products were in bfloat16, and after samples and validation."""
    found = load_file(folder / stage / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert same(found, saved(checkpoint(folder, stage, STEPS)))
    start = load_file(folder / "model" / "model.safetensors")
    assert not any(torch.equal(tensor, start[name]) for name, tensor in found.items())


@stages
def test_the_folder_tells_of_the_run(folder, stage):
    provenance = json.loads((folder / stage / "out" / "lnlit.json").read_text())["provenance"]
    assert provenance["steps"] == STEPS and "train/loss" in provenance["metrics"]
    written = {"chat": ["toggle_report.json"], "policy": ["rollouts.html", "rollouts"]}[stage.partition("-")[0]]
    assert all((folder / stage / name).exists() for name in written)


def test_a_sharded_checkpoint_is_exported_as_the_refusal_says(folder, tmp_path):
    path = checkpoint(folder, "chat-dp2", STEPS)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    alone = L.Trainer(accelerator="cpu", devices=1, max_steps=MORE, callbacks=[Checkpoint()], **quiet)
    with pytest.raises(UserError, match="is the folder of a sharded run") as refused:
        alone.fit(SFT(str(folder / "model"), OPTIMIZER), chats(folder, 6), ckpt_path=path)
    advice = re.search(r"lnlit (export \S+ )DIR", str(refused.value))
    assert advice is not None
    assert main([*shlex.split(advice[1]), str(tmp_path / "out")]) == 0
    assert same(load_file(tmp_path / "out" / "model.safetensors"), saved(path))


def test_a_single_file_goes_on_sharded(folder):
    assert checkpoint(folder, "chat-ddp", STEPS).is_file()
    assert far_apart(folder, "chat-ddp-ddp", "chat-ddp-dp2") < TOLERANCE


@pytest.mark.parametrize("run", ["chat-dp2-tp2-dp2", "one_rank", "three_ranks"])
def test_a_checkpoint_goes_on_under_another_division(folder, request, record_property, run):
    name = run if run.startswith("chat") else request.getfixturevalue(run)
    worst = far_apart(folder, "chat-dp2-dp2", name)
    record_property("max_abs_difference", worst)
    assert worst < TOLERANCE


def test_another_architecture_is_refused(folder, tmp_path, capsys):
    spec = read_spec(folder / "model")
    other = str(tiny_folder(tmp_path / "other", spec.replace(layers=spec.layers * 2)))
    config = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": MORE,
            "default_root_dir": str(tmp_path),
            "strategy": {
                "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
                "init_args": {"data_parallel_size": 1, "tensor_parallel_size": 1, "process_group_backend": "gloo"},
            },
        },
        "model": {"class_path": "SFT", "init_args": {"model": other, "optimizer": {"learning_rate": 0.01}}},
        "data": {
            "class_path": "ChatData",
            "init_args": {
                "tokenizer": other,
                "train": {"class_path": "JsonlSource", "init_args": {"paths": str(folder / "rows.jsonl")}},
                "sequence_length": 96,
                "micro_batch_size": 6,
            },
        },
    }
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config))
    path = checkpoint(folder, "chat-dp2", STEPS)
    assert main(["fit", "--config", str(file), "--ckpt_path", str(path)]) == 2
    error = capsys.readouterr().err
    assert "error: ckpt_path: the sharded checkpoint does not fit this run: Missing key" in error
    assert "layers.4" in error
