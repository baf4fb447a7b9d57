"""A CUDA build of torch, as PyPI serves it, on a machine without a GPU."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import lightning as L
import pytest
import torch

from lnlit.callbacks import default_callbacks
from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.models.device import accelerator, has_cuda, torch_device
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.rollout.native import NativeEngine
from lnlit.search.hardware import Hardware
from lnlit.testing.rollout_contract import check_rollout_engine
from lnlit.testing.tiny import mixed_spec, tiny_folder

LNLIT = Path(__file__).parents[2] / "lnlit"
ONE_PLACE = LNLIT / "models" / "device.py"


@pytest.fixture(autouse=True)
def cuda_build(monkeypatch):
    """Fakes what such a torch answers."""

    def current_accelerator(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)


def test_everything_is_computed_on_the_cpu():
    assert (has_cuda(), torch_device(), accelerator()) == (False, "cpu", torch.device("cpu"))
    assert Hardware.here(torch_device()).device == "cpu"


def test_the_native_engine_answers():
    check_rollout_engine(lambda: NativeEngine(8, "float32"), mixed_spec())


def test_a_run_trains(tmp_path):
    model = str(tiny_folder(tmp_path / "model"))
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    data = ChatData(model, JsonlSource(str(tmp_path / "rows.jsonl")), 64, 1)
    trainer = L.Trainer(
        max_steps=1, logger=False, default_root_dir=tmp_path, callbacks=default_callbacks(), enable_model_summary=False
    )
    trainer.fit(SFT(model, AdamW(1e-3, schedule="constant", warmup_ratio=0.0)), data)
    assert trainer.global_step == 1


def test_torch_is_asked_in_one_place():
    questions = {
        "current_accelerator",
        "cuda.is_available",
        "cuda.device_count",
        "accelerator.is_available",
        "is_built",
    }
    asked = {
        f"{path.relative_to(LNLIT)}: {asked}"
        for path in LNLIT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and (asked := ast.unparse(node.func)).endswith(tuple(questions))
        if path != ONE_PLACE
    }
    # How many, where there is one.
    assert asked == {f"{file}.py: torch.cuda.device_count" for file in ("search/hardware", "cli/plan_fit", "cli/env")}
