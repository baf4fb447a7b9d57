"""Writes the results of a run to a file: the last value of each metric, and the value of each held-out question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.callbacks.interrupt import stopped_by
from lnlit.files import write_json


@runtime_checkable
class KnowsQuestions(Protocol):
    """A callback that has a metric for each held-out question."""

    def per_question(self) -> Mapping[str, Mapping[str, float]]:
        """Maps metric -> question -> value, for the newest weights that were evaluated. A metric is the mean over its
        questions."""
        ...


class RunResults(L.Callback):
    """Writes a JSON file at the end of a fit: {"step", "validated_at", "metrics": {name: last value, null if it is not
    finite}, "questions": {metric: {question: value}}}. `lnlit ablate` compares runs by these files.

    With `max_steps: 0`, the metrics are those of the validation before training, so that the initial model can be
    compared with trained ones. A run that was stopped early writes nothing.

    Args:
        out: The file to write.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self._metrics: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._validated_at: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self._metrics, "validated_at": self._validated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics, self._validated_at = state_dict["metrics"], state_dict["validated_at"]

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = _values(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._metrics |= _values(trainer)
            self._validated_at = trainer.global_step

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = _values(trainer)  # on every rank, because the values may have to be reduced
        if stopped_by(trainer) is not None or not trainer.is_global_zero:
            return
        step = trainer.global_step
        asked = [callback for callback in trainer.callbacks if isinstance(callback, KnowsQuestions)]  # type: ignore
        questions = {name: dict(found) for callback in asked for name, found in callback.per_question().items()}
        means = {name: sum(found.values()) / len(found) for name, found in questions.items() if found}
        metrics = {**means, **({} if step else self._before), **self._metrics, **last}
        results = {"step": step, "validated_at": self._validated_at if step else 0}
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        write_json(Path(self.out), {**results, "metrics": finite, "questions": questions})
        rank_zero_info(f"wrote {self.out}")


def _values(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
