"""Saves random generators in checkpoints. Lightning leaves them out, so dropout would differ after a resume."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch

from lnlit.models.device import has_cuda
from lnlit.models.ranks import all_gather


class RandomState(L.Callback):
    """Saves the states of Python's, NumPy's, torch's and CUDA's generators on every rank, as tensors and plain data."""

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": all_gather(_capture())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict["ranks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Only now: building the model and the sanity check draw random numbers as well.
        if self._restored is not None and len(self._restored) == trainer.world_size:
            _restore(self._restored[trainer.global_rank])
        self._restored = None


def _capture() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *map(float, numpy_state[2:])],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if has_cuda() else None,
    }


def _restore(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and has_cuda():
        torch.cuda.set_rng_state(state["cuda"].cpu())
