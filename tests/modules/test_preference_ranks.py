"""Two ranks take the step that one takes, on preference data and with the reward head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from preference_step import step
from safetensors.torch import save_file
from warm import torchrun

from lnlit.models.reward_head import FILE
from lnlit.testing.tiny import tiny_folder


def write(file: Path, count: int, first: int) -> str:
    rows = [
        {"prompt": f"what is {n}?", "chosen": "a" * (1 + n % 7), "rejected": "b" * (1 + n % 5)}
        for n in range(first, first + count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("method", ["RewardModel", "RPO"])
def test_two_gloo_ranks_equal_one(tmp_path, method):
    model = tiny_folder(tmp_path / "model")
    save_file({"weight": torch.randn(1, 32, generator=torch.Generator().manual_seed(3))}, model / FILE)
    files = write(tmp_path / "train.jsonl", 8, 0), write(tmp_path / "val.jsonl", 5, 50)  # 5: one rank has an empty row
    script = Path(__file__).with_name("preference_step.py")
    torchrun(2, script, method, model, *files, tmp_path / "out.pt", cwd=tmp_path, timeout=100)
    two, one = torch.load(tmp_path / "out.pt", weights_only=True), step(method, str(model), *files, ranks=1)
    assert two["metrics"].keys() == one["metrics"].keys() and "val/loss" in one["metrics"]
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert two["gradients"].keys() == one["gradients"].keys()
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=0)
