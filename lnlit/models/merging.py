"""How tensors of several models of one architecture become one: weighted sums, and interpolation along a sphere.

All computations are in fp32, or in fp64 if the tensors are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Beyond this cosine two tensors are so nearly parallel that they are interpolated in a straight line.
_PARALLEL = 0.9995


def weighted_sum(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """The sum of tensors of one shape, each times its factor."""
    dtype = _wide(tensors[0])
    total = torch.zeros_like(tensors[0], dtype=dtype)
    for tensor, factor in zip(tensors, torch.tensor(factors, dtype=dtype), strict=True):
        total.addcmul_(tensor, factor.reshape((1,) * tensor.dim()))
    return total


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of tensors of one shape by weights of any sum but 0 (model soups, arXiv 2203.05482).

    It is divided at the end, as mergekit does, so that the results are equal bit by bit.
    """
    return weighted_sum(tensors, weights).div_(torch.tensor(weights, dtype=_wide(tensors[0])).sum())


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """The point at the fraction `t` of the arc from `first` to `second`, both taken as one long vector each.

    The angle is that between the two directions; lengths are interpolated with it. Vectors that are almost parallel, or
    zero, are interpolated in a straight line.
    """
    one, other = first.to(_wide(first)), second.to(_wide(first))
    directions = [vector / vector.norm().clamp(min=1e-8) for vector in (one, other)]
    cosine = (directions[0] * directions[1]).sum().clamp(-1, 1)
    if cosine.abs() > _PARALLEL:
        return torch.lerp(one, other, t)
    angle = torch.acos(cosine)
    return (one * torch.sin((1 - t) * angle) + other * torch.sin(t * angle)) / torch.sin(angle)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
