"""Ctrl-C and SIGTERM end a run cleanly: finish the optimizer step, save, stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.callbacks.checkpoints import Checkpoint


class GracefulStop(L.Callback):
    """Stops at the next optimizer step after SIGINT or SIGTERM, on all ranks together, with a checkpoint.

    Lightning's own handler communicates inside the signal handler and hangs when only one rank is signalled; here a
    flag is set, and ranks agree on it after a batch. A second Ctrl-C stops at once.

    Args:
        every_n_batches: batches between agreements in a distributed run.
    """

    signal_received: int | None = None

    def __init__(self, every_n_batches: int = 1) -> None:
        self.every_n_batches = every_n_batches
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():  # only there can a signal be caught
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.signal_received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_received = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        mid_step = trainer.fit_loop._should_accumulate()
        if mid_step or batch_idx % self.every_n_batches:
            return
        if trainer.strategy.reduce_boolean_decision(self.signal_received is not None, all=False):
            self.signal_received = self.signal_received or signal.SIGTERM  # another rank was told
            trainer.should_stop = True
            saver = next((c for c in trainer.callbacks if isinstance(c, Checkpoint)), None)  # type: ignore[attr-defined]
            if saver is not None:
                saver.save(trainer)
                rank_zero_info(f"saved a checkpoint at step {trainer.global_step}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
