"""The distance of a replacement block's output from the parent block's (Puzzle, Bercovich et al. 2024, section 3).

The error is `MSE(child, parent) / MSE(parent, 0)` over all elements: 0 for the parent itself, 1 for zeros. The two sums
are accumulated over batches before they are divided.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def squared_difference(child: Tensor, parent: Tensor) -> Tensor:
    """The summed squared difference, an fp32 scalar."""
    return (child.float() - parent.float()).square().sum()


def sum_of_squares(parent: Iterable[Tensor]) -> Tensor:
    """The sum of squares of the parent's outputs, an fp32 scalar."""
    return torch.stack([output.float().square().sum() for output in parent]).sum()


def squared_errors(child: Tensor, parent: Tensor) -> Tensor:
    """(summed squared difference, sum of squares of the parent's outputs), fp32 [2]."""
    return torch.stack([squared_difference(child, parent), sum_of_squares([parent])])
