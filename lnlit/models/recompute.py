"""Blocks that are computed again in the backward pass, so that only their inputs are kept (Chen et al. 2016).

Shape suffixes: B batch rows, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lnlit.interfaces.layer import Attend


def recomputed(
    block: nn.Module, x_BTD: Tensor, attend: Attend, rope: Mapping[int, tuple[Tensor, Tensor]], offload: bool
) -> Tensor:
    """The block's output. With `offload`, its input waits in host memory: there is one of each layer, and of a long row
    they can be more than a GPU holds."""
    if not offload or not any(True for _ in block.parameters()):
        return checkpoint(block, x_BTD, attend, rope, use_reentrant=False)  # type: ignore[return-value]
    waiting = _Waiting(x_BTD)
    out_BTD = checkpoint(lambda: block(waiting.here(), attend, rope), use_reentrant=False)
    waiting.put_away()
    return out_BTD  # type: ignore[return-value]


class _Waiting:
    """A tensor that is put away into host memory between two uses.

    Both copies run on the current stream, in order with what computes the tensor and uses it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Tensor | None = tensor
        self._device, self._requires_grad = tensor.device, tensor.requires_grad
        self._host: Tensor | None = None

    def here(self) -> Tensor:
        """The tensor itself, or, once it was put away, a copy on its device. No gradient flows into the copy: it does
        through the graph of the first use."""
        if self._tensor is not None:
            return self._tensor
        assert self._host is not None
        if not self._requires_grad:
            return self._host.to(self._device, non_blocking=True)
        return _Back.apply(torch.empty(0, requires_grad=True), self._host, self._device)  # type: ignore[return-value]

    @torch.no_grad()
    def put_away(self) -> None:
        assert self._tensor is not None
        pinned = self._device.type == "cuda"  # else the copy would wait for all work on the GPU
        self._host = torch.empty(self._tensor.shape, dtype=self._tensor.dtype, device="cpu", pin_memory=pinned)
        self._host.copy_(self._tensor, non_blocking=True)
        self._tensor = None


class _Back(torch.autograd.Function):
    """A copy of `host` on a device as the result of a computation, as the tensor was at its first use: a compiled block
    would be compiled anew for a leaf, and keep other tensors."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, host: Tensor, device: torch.device) -> Tensor:
        return host.to(device, non_blocking=True, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return None, None, None
