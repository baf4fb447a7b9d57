"""The angle between two models' hidden states. Shape suffixes: D hidden; "..." stands for any positions, e.g. [B, T] or
[N]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lnlit.objectives.chunked_head import sum_dtype


def cosine_distance(states: Tensor, target: Tensor) -> Tensor:
    """`1 - cos(states, target)` at each position, [..., D] to [...], in fp32 or wider. A zero state has distance 1.

    Only `states` gets a gradient, which is computed in the forward pass, so that the target can be freed at once.
    """
    if not torch.is_grad_enabled():
        states = states.detach()
    return _CosineDistance.apply(states, target.detach())  # type: ignore[return-value]


class _CosineDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, target: Tensor) -> Tensor:
        dtype = sum_dtype(states)
        ours, length = _unit(states.to(dtype))
        theirs, _ = _unit(target.to(dtype))
        cosine = (ours * theirs).sum(-1, keepdim=True)
        if ctx.needs_input_grad[0]:  # d cos / d s = (t / |t| - cos s / |s|) / |s|
            ctx.save_for_backward(ours.mul_(cosine).sub_(theirs).div_(length).to(states.dtype))
        return (1 - cosine).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (grad_states,) = ctx.saved_tensors
        return grad_states * grad[..., None].to(grad_states.dtype), None


def _unit(states: Tensor) -> tuple[Tensor, Tensor]:
    """(states scaled to length 1, their lengths [..., 1]). A zero state stays zero."""
    length = states.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    return states / length, length
