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

from lnlit.callbacks import Checkpoint, GracefulStop, RandomState, SkipBadSteps
from lnlit.callbacks.checkpoints import checkpoint_folder, list_checkpoints
from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.models.lora import LoRA
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.testing.tiny import tiny_folder

STEPS, LONGEST_LIFE = 90, 14


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
            SkipBadSteps(),
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


def wait_for_training(journal: Path, child: int, batches: int) -> None:
    """Return once the child has trained on so many batches (or died, which the caller will see)."""
    before = lines(journal)
    while lines(journal) < before + batches:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    tiny_folder(folder / "model")
    write_rows(folder / "rows.jsonl")
    began = time.monotonic()
    assert os.waitpid(start(folder, "whole"), 0)[1] == 0
    batch_s = (time.monotonic() - began) / lines(folder / "whole.journal")
    chance = random.Random(kills)
    for _ in range(kills):
        child = start(folder, "killed")
        # The first checkpoint comes with the sixth batch. All lives together leave batches for a last one.
        wait_for_training(folder / "killed.journal", child, chance.randint(1, LONGEST_LIFE))
        time.sleep(batch_s * chance.uniform(0, 2))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "training ended by itself"
    finished = os.waitpid(start(folder, "killed"), 0)[1] == 0
    print(json.dumps({"finished": finished}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
