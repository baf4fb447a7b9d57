"""How far a replacement block's output is from the parent block's (Puzzle, Bercovich et al. 2024, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_errors(child: Tensor, parent: Tensor) -> Tensor:
    """(summed squared difference, summed square of the parent's), fp32 [2]: to be added up over batches."""
    parent = parent.float()
    return torch.stack([(child.float() - parent).square().sum(), parent.square().sum()])


def block_error(child: Tensor, parent: Tensor) -> Tensor:
    """`MSE(child, parent) / MSE(parent, 0)` over all elements, an fp32 scalar: 0 for the parent itself, 1 for zeros."""
    difference, square = squared_errors(child, parent)
    return difference / square
