"""What a policy does not need while its engine generates waits in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lnlit.modules.lit_model import LitModel


@contextmanager
def offloaded(module: LitModel) -> Iterator[None]:
    """Weights, gradients and the optimizer's state are on the CPU inside, and back on their device after it.

    Modules move themselves, which FSDP2 takes part in; the optimizer's scalars are on the CPU anyway.
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
    """The optimizer's, one for each parameter."""
    return [state for optimizer in module.trainer.optimizers for state in optimizer.state.values()]
