"""What tests of `BlockDistill` share: runs of it on the tiny library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lnlit.callbacks import Checkpoint
from lnlit.callbacks.checkpoints import checkpoint_folder, list_checkpoints
from lnlit.data.sources import TextFileSource
from lnlit.data.text_data import TextData
from lnlit.modules.block_distill import BlockDistill
from lnlit.modules.optim import AdamW
from lnlit.search.choice import SLOTS, At
from lnlit.search.library import Library

STEPS = 8
#: The layers one after another, each as long as `STEPS`.
GROUPS = {"max_epochs": 2, "limit_train_batches": STEPS, "reload_dataloaders_every_n_epochs": 1}
#: Pairs with the parent's own half, and candidates beside the parent's bf16 half.
MIXED = {"only": ("*/block/kv2+i16", "*/block/kv1+i48", "*/attention/kv1")}


class Distillery:
    """Runs `BlockDistill` on the tiny library."""

    def __init__(self, parent: Path, library: Path, text: Path, folder: Path, rows: int = 2) -> None:
        self.parent, self.library, self.text, self.folder, self.rows = parent, library, text, folder, rows

    def module(self, name: str, steps: int = STEPS, **settings: Any) -> BlockDistill:
        """By default each row goes through a block by itself."""
        settings = {"optimizer": AdamW(1e-2, warmup_ratio=0.0, schedule="constant"), "batch_tokens": 64, **settings}
        return BlockDistill(str(self.parent), str(self.library), str(self.folder / name), **settings)

    def fit(
        self, name: str, callbacks: tuple[L.Callback, ...] = (), trainer: Any = None, val: bool = False, **settings: Any
    ):
        """The library that a run writes; None when it stopped early. Resumes where a checkpoint is."""
        data = TextData(str(self.parent), TextFileSource(str(self.text)), 64, self.rows)
        data.val = TextFileSource(str(self.text)) if val else None
        root = self.folder / f"{name}-run"
        trainer = trainer or {"max_steps": STEPS}
        run = L.Trainer(
            accelerator="cpu",
            default_root_dir=root,
            callbacks=[Checkpoint(every_n_steps=0), *callbacks],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **trainer,
        )
        found = list_checkpoints(checkpoint_folder(root))
        run.fit(self.module(name, **settings), data, ckpt_path=found[-1] if found else None)
        out = self.folder / name
        return Library.open(out) if (out / "library.json").is_file() else None


def trainable(library: Library, layer: int) -> list[tuple[str, str]]:
    variants = library.layers[layer]
    return [(s, n) for s in SLOTS for n, v in getattr(variants, s).items() if v.parameters and not v.parent]


def weights(library: Library, layers: tuple[int, ...] = (0, 1)) -> dict[str, Tensor]:
    return {
        f"{layer}/{slot}/{name}/{key}": tensor
        for layer in layers
        for slot, name in trainable(library, layer)
        for key, tensor in library.weights(At(layer, slot, name)).items()
    }


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    assert one.keys() == two.keys()
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


class StopAt(L.Callback):
    """Saves and stops after a step, as `GracefulStop` does after a signal."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True
            next(callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)).save(trainer)
