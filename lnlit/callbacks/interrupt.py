"""Ends a run cleanly on Ctrl-C and SIGTERM: finishes the optimizer step, saves a checkpoint and stops."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.callbacks.checkpoints import Checkpoint


class GracefulStop(L.Callback):
    """Stops after the current optimizer step on SIGINT or SIGTERM, on all ranks together, with a checkpoint.

    Lightning's own handler communicates inside the signal handler and hangs if only one rank is signalled. Here the
    handler sets a flag, and ranks compare flags after each step. A second Ctrl-C stops immediately.
    """

    #: The signal that ended the run, the same on every rank; None for a run that ended by itself.
    stopped_by: int | None = None

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():  # only there can a signal be caught
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.fit_loop._should_accumulate():  # a checkpoint amid an accumulation would lose its gradients
            return
        if not trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            return
        self.stopped_by = self._received or signal.SIGTERM  # perhaps another rank was told
        trainer.should_stop = True
        saver = next((c for c in trainer.callbacks if isinstance(c, Checkpoint)), None)  # type: ignore[attr-defined]
        if saver is not None:
            saver.save(trainer)
            rank_zero_info(f"saved a checkpoint at step {trainer.global_step}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def stopped_by(trainer: L.Trainer) -> int | None:
    """The signal that stopped this run early, or None."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c.stopped_by for c in callbacks if isinstance(c, GracefulStop)), None)
