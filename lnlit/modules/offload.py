"""Moves what a policy does not need while its engine generates to host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lnlit.modules.lit_model import LitModel


@contextmanager
def offloaded(module: LitModel) -> Iterator[None]:
    """Keeps weights, gradients and the optimizer's state on the CPU inside the context, and moves them back after it.

    Modules are moved as a whole, which FSDP2 supports. The optimizer's scalars are on the CPU anyway.
    """
    device = module.trainer.strategy.root_device
    if device.type == "cpu":
        yield
        return
    try:
        _move(module, torch.device("cpu"))
        torch.accelerator.empty_cache()
        yield
    finally:
        _move(module, device)


def _move(module: LitModel, device: torch.device) -> None:
    module.decoder.to(device)
    for state in states(module):
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                state[name] = value.to(device)


def states(module: LitModel) -> list[dict[str, Any]]:
    """The states of the optimizers, one for each parameter."""
    return [state for optimizer in module.trainer.optimizers for state in optimizer.state.values()]
