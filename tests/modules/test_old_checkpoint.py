"""A checkpoint that holds states and settings under names of before is gone on with as if it had the new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from experience_run import Run, same

from lnlit.callbacks import SkipBadSteps
from lnlit.errors import UserError


def run(model: Path, prompts: str, root: Path, steps: int, **settings: Any) -> Run:
    made = Run(model, prompts, root, steps, updates_per_rollout=2, save=True, **settings)
    made.trainer.callbacks.append(SkipBadSteps())
    return made


def with_old_names(file: Path, **settings: Any) -> Path:
    saved = torch.load(file, weights_only=True)
    data = saved["Experience"] = saved.pop("PromptData")
    saved["callbacks"]["Stability"] = saved["callbacks"].pop("SkipBadSteps")
    old = {"mask_truncated": "truncated", "scale_rewards": "scale", "prompt_order": "order"}
    data["settings"] = {old.get(name, name): value for name, value in data["settings"].items()} | settings
    torch.save(saved, file.with_name("old.ckpt"))
    return file.with_name("old.ckpt")


def test_a_checkpoint_of_old_names_is_gone_on_with(model, prompts, tmp_path):
    whole = run(model, prompts, tmp_path / "whole", 4).fit()
    run(model, prompts, tmp_path / "cut", 1).fit()
    file = with_old_names(tmp_path / "cut" / "checkpoints" / "step-1.ckpt", truncated="keep")
    resumed = run(model, prompts, tmp_path / "cut", 4, ckpt_path=file).fit()
    assert same(resumed.weights, whole.weights)
    assert resumed.drawn() == whole.drawn()[1:]


def test_other_settings_are_refused_by_the_new_name(model, prompts, tmp_path):
    run(model, prompts, tmp_path, 1).fit()
    file = with_old_names(tmp_path / "checkpoints" / "step-1.ckpt", truncated="mask")
    with pytest.raises(UserError, match="with mask_truncated: True, this run has False"):
        run(model, prompts, tmp_path, 4, ckpt_path=file).fit()
