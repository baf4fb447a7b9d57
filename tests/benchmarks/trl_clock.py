"""The seconds and losses of the steps of TRL's trainers."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback


class TRLClock(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[float] = []
        self.losses: list[float] = []
        self.end = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        last, self.end = self.end, time.perf_counter()
        self.steps.append(self.end - last)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.losses.extend([logs["loss"]] if "loss" in logs else [])
