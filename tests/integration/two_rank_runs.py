"""Trains a tiny model on two ranks: python -m torch.distributed.run ... two_rank_runs.py FOLDER.

For each strategy a run is left alone, and another is stopped by a SIGTERM that reaches rank 1 only, then resumed. One
process group serves them all, because starting Python twice takes longer than the training.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lnlit.callbacks import Checkpoint, ExportModel, GracefulStop, RandomState, SkipBadSteps
from lnlit.callbacks.checkpoints import checkpoint_folder, list_checkpoints
from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT

STEPS, STOP_AFTER = 6, 3
RANK = int(os.environ.get("RANK", "0"))
#: Dropout draws random numbers, so a resumed run needs each rank's generators as well.
ADAPTERS = LoRA(rank=4, dropout=0.2, targets=("q_proj", "v_proj", "down_proj"))


def strategies() -> dict[str, Any]:
    return {
        "ddp": DDPStrategy(process_group_backend="gloo"),
        "fsdp2": ModelParallelStrategy(2, 1, process_group_backend="gloo"),
    }


def full(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().clone()


class Journal(L.Callback):
    """What this rank trained on, step by step, and the weights at the end."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        with (self.folder / f"{self.name}.rank{RANK}.journal").open("a") as stream:
            stream.write(json.dumps([trainer.global_step, batch.tokens.tolist()]) + "\n")

    def on_train_end(self, trainer, pl_module) -> None:
        weights = {name: full(parameter) for name, parameter in pl_module.decoder.named_parameters()}
        if RANK == 0:
            torch.save(weights, self.folder / f"{self.name}.pt")


class Terminate(L.Callback):
    """Sends SIGTERM to rank 1 only, before `GracefulStop` looks."""

    sent_at: float | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == STOP_AFTER and self.sent_at is None:
            self.sent_at = time.monotonic()
            if RANK == 1:
                os.kill(os.getpid(), signal.SIGTERM)


class GivenAdapters(L.Callback):
    """Adapters that do not depend on how they are sharded (and a B that is not zero, or A would have no gradient);
    keeps the step's loss and gradients.
    """

    def on_train_start(self, trainer, pl_module) -> None:
        generator = torch.Generator().manual_seed(3)
        for parameter in (p for p in pl_module.decoder.parameters() if p.requires_grad):
            value = torch.randn(parameter.shape, generator=generator) * 0.1
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            parameter.data.copy_(value)

    def on_gradient_norm(self, trainer, pl_module, norm: float) -> bool:
        named = pl_module.decoder.named_parameters()
        self.gradients = {name: full(p.grad) for name, p in named if p.grad is not None}
        self.loss = float(trainer.callback_metrics["train/loss"])
        return False


def write_rows(file: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * (1 + i % 9)}]}
        for i in range(37)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def chat(folder: Path, micro_batch_size: int = 1) -> ChatData:
    return ChatData(str(folder / "model"), JsonlSource(str(folder / "rows.jsonl")), 96, micro_batch_size)


def trainer(root: Path, strategy: Any, devices: int, callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        gradient_clip_val=1.0,
        default_root_dir=root,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )


def train(folder: Path, strategy: str, name: str, seed: int, stop: bool = False) -> float | None:
    """Train to the last step or the signal, from the newest checkpoint if there is one. Seconds since the signal."""
    L.seed_everything(seed + RANK)
    module = SFT(str(folder / "model"), AdamW(1e-2), lora=ADAPTERS if strategy == "ddp" else None)
    terminate = Terminate()
    callbacks = [
        Journal(folder, f"{strategy}-{name}"),
        *([terminate] if stop else []),
        Checkpoint(every_n_steps=0),
        GracefulStop(),
        RandomState(),
        SkipBadSteps(),
    ]
    root = folder / f"{strategy}-{name}"
    found = list_checkpoints(checkpoint_folder(root))
    run = trainer(root, strategies()[strategy], 2, callbacks, max_steps=STEPS, accumulate_grad_batches=2)
    run.fit(module, chat(folder), ckpt_path=found[-1] if found else None)
    return None if terminate.sent_at is None else time.monotonic() - terminate.sent_at


class KeepsStart(L.Callback):
    """The adapters that a run starts with."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.adapters = {name: full(p) for name, p in pl_module.decoder.named_parameters() if p.requires_grad}


def adapters_at_start(folder: Path, adapter: Path, strategy: Any, devices: int) -> dict[str, Tensor]:
    """The adapters of a run that goes on from a PEFT folder, on a base in bf16."""
    targets = ("q_proj", "v_proj", "down_proj")
    lora = LoRA(rank=4, targets=targets, base_dtype="bfloat16", adapter=str(adapter))
    kept = KeepsStart()
    settings = {"precision": "bf16-mixed", "max_steps": 1, "enable_checkpointing": False}
    trainer(folder / "start", strategy, devices, [kept], **settings).fit(
        SFT(str(folder / "model"), AdamW(1e-3), lora=lora), chat(folder)
    )
    return kept.adapters


def adapter_step(folder: Path, strategy: Any, devices: int) -> dict[str, Any]:
    """Loss and gradients of one step of LoRA with activation checkpointing, on the same two rows for 1 or 2 devices.
    The adapters go to a PEFT folder."""
    lora = LoRA(rank=4, targets=("q_proj", "v_proj", "down_proj"))
    module = SFT(str(folder / "model"), AdamW(1e-3), Runtime(activation_checkpointing=True), lora)
    given = GivenAdapters()
    callbacks = [given, ExportModel(str(folder / f"adapter-{devices}"), overwrite=True, adapter=True)]
    trainer(folder / "lora", strategy, devices, callbacks, max_steps=1, enable_checkpointing=False).fit(
        module, chat(folder, micro_batch_size=2 // devices)
    )
    return {"loss": given.loss, "gradients": given.gradients}


def main(folder: Path) -> None:
    stopping_s = {}
    for strategy in strategies():
        train(folder, strategy, "whole", seed=1)
        stopping_s[strategy] = train(folder, strategy, "stopped", seed=1, stop=True)
        left = checkpoint_folder(folder / f"{strategy}-stopped")
        if RANK == 0:
            (folder / f"{strategy}-left.json").write_text(json.dumps([path.name for path in left.iterdir()]))
        torch.distributed.barrier()
        train(folder, strategy, "stopped", seed=50)
    step = adapter_step(folder, strategies()["fsdp2"], 2)
    torch.distributed.barrier()
    start = adapters_at_start(folder, folder / "adapter-2", strategies()["fsdp2"], 2)
    if RANK == 0:
        torch.save(step, folder / "lora.pt")
        torch.save(start, folder / "start.pt")
    (folder / f"rank{RANK}.json").write_text(json.dumps(stopping_s))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
