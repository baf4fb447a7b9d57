"""DDP and FSDP2 on two ranks: a stopped and resumed run ends like one left alone, and a step equals one rank's."""

import json
import os
from pathlib import Path

import pytest
import torch
import warm
from two_rank_runs import STEPS, STOP_AFTER, adapter_step, write_rows

from lnlit.callbacks.checkpoints import checkpoint_folder, list_checkpoints
from lnlit.testing.tiny import tiny_folder

strategies = pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    tiny_folder(folder / "model")
    write_rows(folder / "rows.jsonl")
    script = Path(__file__).with_name("two_rank_runs.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHON_EXEC": warm.python()}
    done = warm.run(*launcher, script, folder, cwd=folder, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def journal(folder: Path, run: str, rank: int) -> list[tuple[int, list]]:
    return [json.loads(line) for line in (folder / f"{run}.rank{rank}.journal").read_text().splitlines()]


@strategies
def test_a_signal_to_one_rank_stops_both_at_the_same_step_with_a_checkpoint(folder, strategy):
    for rank in (0, 1):
        assert json.loads((folder / f"rank{rank}.json").read_text())[strategy] < 10
    assert json.loads((folder / f"{strategy}-left.json").read_text()) == [f"step-{STOP_AFTER}.ckpt"]


@strategies
def test_a_resumed_run_ends_in_the_same_weights_bitwise(folder, strategy):
    whole, resumed = (torch.load(folder / f"{strategy}-{run}.pt", weights_only=True) for run in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


@strategies
def test_the_runs_moved_the_weights(folder, strategy):
    """Or the comparison above would hold for a run that does nothing."""
    from safetensors.torch import load_file

    start = load_file(folder / "model" / "model.safetensors")
    end = torch.load(folder / f"{strategy}-whole.pt", weights_only=True)
    trained = [name for name in end if "lora_" in name] if strategy == "ddp" else list(end)
    assert trained
    for name in trained:
        before = torch.zeros(()) if "lora_" in name else start[f"model.{name}"]
        assert not torch.allclose(end[name], before, atol=1e-3), name


@strategies
def test_a_resumed_run_reads_the_same_rows_on_each_rank(folder, strategy):
    runs = [[journal(folder, f"{strategy}-{run}", rank) for rank in (0, 1)] for run in ("whole", "stopped")]
    assert runs[0] == runs[1]
    (first, second), steps = runs[0], [step for step, _ in runs[0][0]]
    assert steps[-1] == STEPS
    assert all(mine != others for (_, mine), (_, others) in zip(first, second, strict=True))


def test_fsdp2_checkpoints_are_sharded_and_ddp_ones_are_files(folder):
    for strategy, sharded in {"ddp": False, "fsdp2": True}.items():
        (newest,) = list_checkpoints(checkpoint_folder(folder / f"{strategy}-stopped"))
        assert newest.name == f"step-{STEPS}.ckpt"
        assert newest.is_dir() == sharded


def test_sharded_adapters_with_activation_checkpointing_step_like_one_rank(folder):
    one, two = adapter_step(folder, "auto", 1), torch.load(folder / "lora.pt", weights_only=True)
    assert abs(one["loss"] - two["loss"]) <= 1e-5
    assert one["gradients"].keys() == two["gradients"].keys()
    assert all("lora_" in name and gradient.any() for name, gradient in one["gradients"].items())
    worst = max((gradient - two["gradients"][name]).abs().max().item() for name, gradient in one["gradients"].items())
    assert worst <= 1e-5, worst


def test_sharded_adapters_go_to_a_peft_folder_whole_and_come_back(folder):
    from safetensors.torch import load_file

    adapter_step(folder, "auto", 1)
    one, two = (load_file(folder / f"adapter-{ranks}" / "adapter_model.safetensors") for ranks in (1, 2))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 3e-3  # Adam's step, whose sign may differ
    assert min(one[name].std().item() for name in one) > 0.05
    start = torch.load(folder / "start.pt", weights_only=True)
    assert len(start) == len(two)
    for name, value in start.items():
        there = name.replace("lora_a.", "lora_A.").replace("lora_b.", "lora_B.")
        assert torch.equal(value, two[f"base_model.model.model.{there}"]), name
