"""The contract of training methods, as a function for a test to call.

    from lnlit.testing.method_contract import check_method

    def test_contract():
        check_method(lambda model: MyMethod(model, AdamW(1e-3)))

Raises AssertionError naming the method and the broken promise.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.testing.promises import expect
from lnlit.testing.tiny import tiny_folder

#: Rows of unequal length, so that a mean over micro-batches is not the mean over a step.
ROWS = [{"input": f"question {at}", "output": f"{at} " * (1 + 3 * at)} for at in range(4)]
#: (the folder of a tiny model, rows of a micro-batch) -> data to learn from, two rows in all.
Data = Callable[[str, int], L.LightningDataModule]


def check_method(make: Callable[[str], L.LightningModule], data: Data | None = None) -> None:
    """Checks a method that `make` builds from the folder of a tiny model: it learns, the same seed gives the same
    result, and a step does not depend on its division into micro-batches. `data` defaults to conversations."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        model = str(tiny_folder(folder / "model"))

        def chats(model: str, rows: int) -> L.LightningDataModule:
            source = JsonlSource(str(folder / "rows.jsonl"))
            return ChatData(model, source, sequence_length=96, micro_batch_size=rows, val=source)

        def trained(rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
            return _trained(make(model), (data or chats)(model, rows), folder, 2 // rows)

        label = type(make(model)).__name__
        before, after, loss = trained(2)
        expect(math.isfinite(loss), label, f"the training loss is {loss}")
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        expect(bool(moved), label, "two steps change no weight")
        expect(all(bool(after[name].isfinite().all()) for name in moved), label, "weights are not finite")
        for what, rows in {"the same seed": 2, "micro-batches of half the size": 1}.items():
            _, other, _ = trained(rows)
            close = all(torch.allclose(value, other[name], atol=1e-5) for name, value in after.items())
            expect(close, label, f"{what}, other weights: a step returns step_loss(sum, count), never a mean")


class _Begins(L.Callback):
    """Records the weights at the start of training."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights = _weights(pl_module)


def _trained(
    method: L.LightningModule, data: L.LightningDataModule, folder: Path, accumulate: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """(weights before, weights after two steps, the last loss)."""
    L.seed_everything(0)
    begins = _Begins()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, accumulate_grad_batches=accumulate, default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
        use_distributed_sampler=False, log_every_n_steps=1, callbacks=begins,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(method, data)
    return begins.weights, _weights(method), float(trainer.callback_metrics["train/loss"])


def _weights(method: L.LightningModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in method.named_parameters()}
