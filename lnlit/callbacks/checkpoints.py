"""Training checkpoints: one folder per run; a new one is complete before an older one is deleted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import callbacks

from lnlit.callbacks.progress import total_steps
from lnlit.checkpoint.lightning import check_training_checkpoint, checkpoint_folder, is_sharded, list_checkpoints
from lnlit.errors import UserError


class Checkpoint(callbacks.Checkpoint):
    """Keeps the newest checkpoints in `<default_root_dir>/checkpoints`, where `--ckpt_path last` finds them.

    Lightning's ModelCheckpoint may be added to keep the best by a metric. A file is written under a temporary name and
    then renamed, so a kill or a full disk leaves the previous checkpoint intact.

    Args:
        every_n_steps: Optimizer steps between checkpoints. 0 saves only at the end and when interrupted.
        keep: The number of checkpoints to keep.
    """

    def __init__(self, every_n_steps: int = 100, keep: int = 1) -> None:
        if every_n_steps < 0 or keep < 1:
            raise UserError(f"Checkpoint: needs every_n_steps >= 0 and keep >= 1, got {every_n_steps} and {keep}")
        self.every_n_steps, self.keep = every_n_steps, keep
        self._saved_step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _SingleFile()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_unused(trainer.default_root_dir)
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        # The last step is saved at once: whatever else runs at the end of training may fail.
        if due or trainer.global_step == total_steps(pl_module):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Saves a checkpoint unless this step already has one. Every rank must call it."""
        if trainer.global_step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = checkpoint_folder(trainer.default_root_dir)
        target = folder / f"step-{trainer.global_step}.ckpt"
        partial = folder / f".partial-{target.name}"
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".partial-*"):  # left by a run that was killed while saving
                _remove(leftover)
        trainer.strategy.barrier()
        try:
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                if target.is_dir():
                    shutil.rmtree(target)
                partial.replace(target)
        except BaseException:
            _remove(partial)
            raise
        if trainer.is_global_zero:
            _sync(folder)
            for old in list_checkpoints(folder)[: -self.keep]:
                _remove(old)
        trainer.strategy.barrier()
        self._saved_step = trainer.global_step


class _SingleFile(TorchCheckpointIO):
    """Writes a checkpoint straight to its file. Lightning builds the whole file in memory first, to support remote file
    systems, which takes a second copy of weights and moments."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as stream:  # given a path, torch hides the reason of a failed write
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        check_training_checkpoint(Path(path))
        if is_sharded(Path(path)):
            raise UserError(
                f"ckpt_path: {path} is the folder of a sharded run, and this run's strategy reads single files. Go on "
                "with trainer.strategy ModelParallelStrategy, on any number of devices (on one: data_parallel_size and "
                f"tensor_parallel_size 1), or begin anew from its weights: lnlit export {path} DIR, and model: DIR."
            )
        return super().load_checkpoint(path, *args, **kwargs)


def check_unused(root: str | Path) -> None:
    """Raises `UserError` if a new run in `root` would mix its checkpoints with an earlier run's."""
    if earlier := list_checkpoints(checkpoint_folder(root)):
        raise UserError(
            f"{earlier[-1]} is of an earlier run. Go on with --ckpt_path last, choose another "
            "trainer.default_root_dir, or delete that run's checkpoints."
        )


def _remove(path: Path) -> None:
    if path.is_dir():  # a sharded checkpoint
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Makes the rename durable before an older checkpoint is deleted."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
