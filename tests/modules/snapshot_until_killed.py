"""Trains against a `PolicySnapshot` in a folder until it is killed in its fourth rollout, or to the end if it was.
Called by test_policy_snapshot.py: FOLDER MODEL PROMPTS."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from experience_run import Run

from lnlit.modules.reference import PolicySnapshot
from lnlit.modules.rpo import RPO

STEPS = 5


def settings() -> dict[str, Any]:
    """Short runs in iterations of two rollouts. Each step is saved."""
    sizes = {"prompts_per_rollout": 2, "samples_per_prompt": 3}
    return {"learner": {"beta": 0.5, "reference": PolicySnapshot(2)}, "save": True, **sizes}


def main(folder: Path, model: str, prompts: str) -> None:
    saved = list((folder / "checkpoints").glob("step-*.ckpt"))

    class Killed(RPO):
        def training_step(self, batch, batch_idx):
            if not saved and self.global_step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().training_step(batch, batch_idx)

    run = Run(model, prompts, folder, STEPS, Killed, ckpt_path=saved[0] if saved else None, **settings()).fit()
    torch.save(run.weights, folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
