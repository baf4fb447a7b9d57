"""Trains with `max_staleness: 1` in a folder until it is killed, at the step after as many as there were kills, while
the next rollout is being generated. Called by test_staleness.py: FOLDER MODEL PROMPTS STEPS KILLS."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from experience_run import Run

from lnlit.modules.grpo import GRPO
from lnlit.modules.prompt_data import LogprobCheck
from lnlit.rollout.native import NativeEngine


class Slow(NativeEngine):
    """Takes long enough to be killed at it. Its decoder is a copy, so it may generate in a thread."""

    generating = False
    runs_apart = True

    def generate(self, requests, sampling):
        self.generating = True
        time.sleep(0.2)
        found = super().generate(requests, sampling)
        self.generating = False
        return found


def main(folder: Path, model: str, prompts: str, steps: int, kills: int) -> None:
    engine, counter = Slow(64, "float32", "cpu"), folder / "kills.txt"

    class Killed(GRPO):
        def training_step(self, batch, batch_idx):
            done = int(counter.read_text()) if counter.exists() else 0
            if done < kills and self.global_step == done + 1:
                assert engine.generating, "nothing is in flight"
                counter.write_text(str(done + 1))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().training_step(batch, batch_idx)

    saved = sorted((folder / "checkpoints").glob("step-*.ckpt"), key=lambda file: int(file.stem.split("-")[1]))
    last = saved[-1] if saved else None
    check = LogprobCheck(mean_difference=1.0, max_difference=10.0)
    settings = {"max_staleness": 1, "save": True, "ckpt_path": last, "logprob_check": check}
    run = Run(model, prompts, folder, steps, Killed, engine=engine, **settings).fit()
    torch.save(run.weights, folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
