"""Progress: a bar with a rate and an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar


def progress_bar() -> ProgressBar:
    return TQDMProgressBar() if sys.stderr.isatty() else PlainProgress()


class PlainProgress(ProgressBar):
    """One line every few seconds: step, loss, tokens/s and time left. For logs and pipes.

    Args:
        every_s: least time between lines, in seconds.
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
        total = getattr(pl_module, "total_steps", None)
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
        left = f"  {_clock((now - self._start) / done * (total - trainer.global_step))} left" if total else ""
        print(f"step {trainer.global_step}/{total or '?'}  {shown}{left}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
