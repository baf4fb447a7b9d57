"""Protects a run from single bad gradients (Llama-Nemotron section 4.2: LN-Ultra's gradient explosions)."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lnlit.errors import UserError


class SkipBadSteps(L.Callback):
    """Skips optimizer steps whose gradient norm is not finite or too large, and stops the run after too many in a row.

    Args:
        explosion_factor: Skip a step whose norm exceeds this multiple of the recent median.
        window: The number of recent norms in the median. No finite norm counts as too large before there are so many.
        max_skips: The number of consecutive skipped steps after which the run stops with advice.
        reset_optimizer: Start with fresh optimizer moments on every resume with this setting, as LN-Ultra did after its
            explosion.
    """

    def __init__(
        self, explosion_factor: float = 100.0, window: int = 50, max_skips: int = 5, reset_optimizer: bool = False
    ) -> None:
        if not explosion_factor > 1 or window < 2 or max_skips < 1:  # NaN is not more than 1
            raise UserError("SkipBadSteps: needs explosion_factor > 1, window >= 2 and max_skips >= 1")
        self.explosion_factor, self.max_skips, self.reset_optimizer = explosion_factor, max_skips, reset_optimizer
        self.recent: deque[float] = deque(maxlen=window)
        self.skipped = self.in_a_row = 0

    def on_gradient_norm(self, trainer: L.Trainer, pl_module: L.LightningModule, norm: float) -> bool:
        """Returns True to skip this optimizer step. The norm is the same on every rank, and so is the result."""
        full = len(self.recent) == self.recent.maxlen
        exploded = full and norm > self.explosion_factor * median(self.recent)
        if math.isfinite(norm) and not exploded:
            if norm:  # nothing was learned, as where all of a policy's samples are equally good
                self.recent.append(norm)
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        pl_module.log("train/skipped_steps", float(self.skipped))
        rank_zero_warn(f"step {trainer.global_step}: gradient norm {norm:.3g}, step skipped ({self.skipped} so far)")
        if self.in_a_row >= self.max_skips:
            raise UserError(
                f"training is unstable: {self.in_a_row} gradient norms in a row were not finite or exploded. Resume "
                "from the last checkpoint with a lower learning_rate or a longer warmup_ratio, and fresh optimizer "
                "moments (callback SkipBadSteps, reset_optimizer: true)."
            )
        return True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.reset_optimizer and trainer.ckpt_path is not None:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
            rank_zero_info("optimizer moments start afresh (SkipBadSteps.reset_optimizer)")

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent.extend(state_dict["recent"])
        self.skipped = state_dict["skipped"]
        self.in_a_row = 0 if self.reset_optimizer else state_dict["in_a_row"]
