"""One optimizer step through Lightning, and the gradients it was taken with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lnlit.data.chat import Document
from lnlit.interfaces import TokenBatch
from lnlit.models.lora import LoRA
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT

#: Documents of different lengths and different shares of loss, so that a mean of means would differ from the mean.
LENGTHS = ((5, 4), (23, 3), (11, 10), (30, 6), (8, 1), (17, 12), (26, 20), (14, 2))


def documents() -> list[Document]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for length, learned in LENGTHS:
        tokens = torch.randint(0, 256, (length,), generator=generator).tolist()
        made.append(Document(tokens, [False] * (length - learned) + [True] * learned))
    return made


class Recorder(L.Callback):
    """Keeps the final gradients (gathered) and the logged loss of the step, and checks the reported norm."""

    def on_gradient_norm(self, trainer: L.Trainer, pl_module: Any, norm: float) -> bool:
        self.gradients = {}
        for name, parameter in pl_module.decoder.named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad
                full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                self.gradients[name] = full.detach().clone()
        gathered = torch.stack([gradient.norm() for gradient in self.gradients.values()]).norm()
        torch.testing.assert_close(torch.tensor(norm), gathered, rtol=1e-5, atol=0)  # sharded or not, one global norm
        self.loss = float(trainer.callback_metrics["train/loss"])
        return False


def step(
    model: Path,
    batches: Sequence[TokenBatch],
    *,
    accumulate: int = 1,
    strategy: Any = "auto",
    devices: int = 1,
    lora: LoRA | None = None,
    method: Any = SFT,
) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients) of one step over `batches`; on several ranks each passes its own."""
    module = method(str(model), optimizer=AdamW(1e-3, schedule="constant", warmup_ratio=0.0), lora=lora)
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1e9,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, train_dataloaders=DataLoader(list(batches), batch_size=None))
    return recorder.loss, recorder.gradients


def rows(made: list[Document]) -> list[list[Document]]:
    """Unpacked: one document a row."""
    return [[document] for document in made]
