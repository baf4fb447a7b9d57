"""Training progress: a bar with rate and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lnlit.progress import clock, say


def progress_bar() -> ProgressBar:
    return StepBar() if sys.stderr.isatty() else PlainProgress()


class StepBar(TQDMProgressBar):
    """One bar for the whole run that counts optimizer steps over all epochs, as `max_steps` does.

    Lightning's own bar counts the batches of an epoch, so it is full too early if gradients are accumulated.
    """

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.unit, bar.leave = "step", True
        return bar

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        bar.total = total_steps(pl_module)
        bar.initial = bar.n = trainer.global_step  # the rate of a resumed run counts only its own steps
        bar.set_description(type(pl_module).__name__)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Keeps the bar instead of starting a new one."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        bar, step = self.train_progress_bar, trainer.global_step
        if step > bar.n and self._should_update(step, total_steps(pl_module) or 0):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module))


class PlainProgress(ProgressBar):
    """Prints step, loss, tokens/s and time left every few seconds, for logs and pipes.

    Args:
        every_s: The minimum time between lines, in seconds.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        super().__init__()
        self.every_s = every_s
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = self._printed = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        total = total_steps(pl_module)
        done = trainer.global_step - self._first_step
        last = trainer.global_step == total
        if (
            not self._enabled
            or not trainer.is_global_zero
            or not done
            or (now - self._printed < self.every_s and not last)
        ):
            return
        self._printed = now
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the logger's version, not a measurement
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
        left = f"  {clock((now - self._start) / done * (total - trainer.global_step))} left" if total else ""
        say(f"step {trainer.global_step}/{total or '?'}  {shown}{left}")


@runtime_checkable
class Planned(Protocol):
    """A training method that provides the number of optimizer steps of the whole run, None while it is unknown."""

    total_steps: int | None


def total_steps(module: L.LightningModule) -> int | None:
    """The number of optimizer steps of the whole run, or None if the training method does not provide it."""
    return module.total_steps if isinstance(module, Planned) else None
