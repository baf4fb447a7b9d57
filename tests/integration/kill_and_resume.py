"""Trains a tiny model in forked children, killing them at random moments: kill_and_resume.py FOLDER KILLS.

A fork starts in milliseconds what a new process would import for seconds. One thread: a fork of a process that has
used a thread pool may hang, and one thread is also what makes sums bitwise reproducible.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import lightning as L
import torch

from lnlit.callbacks import Checkpoint, GracefulStop, RandomState, Stability
from lnlit.callbacks.checkpoints import checkpoint_folder, list_checkpoints
from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.models.lora import LoRA
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.testing.tiny import tiny_folder

STEPS = 90


class Journal(L.Callback):
    """Appends what each step trained on, so that the data order can be compared as well as the weights."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps([trainer.global_step, int((batch.tokens * batch.positions).sum())]) + "\n")


def write_rows(file: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * (1 + i % 9)}]}
        for i in range(37)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(folder: Path, run: str) -> None:
    """One process's life: from the newest checkpoint, if there is one, to the last step."""
    L.seed_everything(1)
    # Adapter dropout consumes random numbers, so the generators' state matters as well.
    lora = LoRA(rank=4, dropout=0.2, targets=("q_proj", "v_proj", "down_proj"))
    module = SFT(str(folder / "model"), AdamW(1e-2), lora=lora)
    data = ChatData(
        str(folder / "model"), JsonlSource(str(folder / "rows.jsonl")), sequence_length=96, micro_batch_size=1
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        default_root_dir=folder / run,
        callbacks=[
            Journal(folder / f"{run}.journal"),
            Checkpoint(every_n_steps=3),
            RandomState(),
            Stability(),
            GracefulStop(),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    found = list_checkpoints(checkpoint_folder(folder / run))
    trainer.fit(module, data, ckpt_path=found[-1] if found else None)


def start(folder: Path, run: str) -> int:
    """Fork a child that trains; returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(folder, run)
            code = 0
        finally:
            os._exit(code)
    return child


def wait_for_training(journal: Path, child: int) -> None:
    """Return once the child has taken a step of its own (or died, which the caller will see)."""
    before = journal.stat().st_size if journal.exists() else 0
    while not (journal.exists() and journal.stat().st_size > before):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    tiny_folder(folder / "model")
    write_rows(folder / "rows.jsonl")
    child = start(folder, "whole")
    wait_for_training(folder / "whole.journal", child)
    began = time.monotonic()
    assert os.waitpid(child, 0)[1] == 0
    training_s = time.monotonic() - began
    chance = random.Random(kills)
    killed = 0
    while killed < kills:
        child = start(folder, "killed")
        wait_for_training(folder / "killed.journal", child)
        time.sleep(training_s * chance.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), "training failed by itself"
        killed += status == signal.SIGKILL
    finished = os.waitpid(start(folder, "killed"), 0)[1] == 0
    print(json.dumps({"killed": killed, "finished": finished, "training_s": training_s}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
