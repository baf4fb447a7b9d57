"""Fits a linear to what it should give by ridge regression towards weights that are there already.

The ridge is chosen by what one half of the rows says about the other. If that is nothing, the weights stay as they are.

Shape suffixes: T tokens of a row, F inputs, D outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lnlit.models.memory import free_bytes

#: Ridges to choose from, in parts of the inputs' mean square.
RIDGES = (0.001, 0.01, 0.1, 1.0)


@dataclass(frozen=True)
class NormalEquations:
    """Sums over the tokens of each half of a text, fp64: of products of two inputs, [2, F, F], and of inputs and wanted
    outputs, [2, F, D]."""

    grams: Tensor
    crosses: Tensor

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[Tensor, Tensor]]) -> NormalEquations:
        """Takes rows of inputs [T, F] and wanted outputs [T, D], which go to the two halves in turn.

        Products of a row are computed in fp32. The sums are on the rows' device if it has room for all that is done
        with them, else on the CPU.
        """
        sums: Tensor | None = None
        for number, (x_TF, y_TD) in enumerate(rows):
            products = x_TF.float().T @ torch.cat((x_TF, y_TD), dim=1).float()
            if sums is None:
                free = free_bytes(products.device)
                is_roomy = free is None or work_bytes(x_TF.shape[1], y_TD.shape[1]) <= free
                where = products.device if is_roomy else torch.device("cpu")
                sums = torch.zeros(2, *products.shape, dtype=torch.double, device=where)
            sums[number % 2] += products.to(sums.device)
        assert sums is not None, "no rows"
        return cls(*sums.split((sums.shape[1], sums.shape[2] - sums.shape[1]), dim=-1))

    def distance(self, weight_DF: Tensor) -> float:
        """The squared difference of the outputs of a weight to those wanted, less the square of those."""
        weight_FD = weight_DF.double().T
        return float((weight_FD * (self.grams.sum(0) @ weight_FD - 2 * self.crosses.sum(0))).sum())


def work_bytes(inputs: int, outputs: int) -> int:
    """The bytes that fitting a linear takes at most, or finding the order in which channels go
    (`lnlit.models.surgery.removal_order`)."""
    return 8 * inputs * (5 * inputs + 6 * outputs)


def fitted(start_DF: Tensor, equations: NormalEquations) -> Tensor:
    """The weight [D, F] that makes the squared difference of the linear's outputs to the wanted ones smallest, with a
    price on its distance to `start_DF`. It has the dtype of that."""
    grams, start_FD = equations.grams, start_DF.double().T
    missing = equations.crosses - grams @ start_FD
    mean_square = float(grams.diagonal(dim1=-2, dim2=-1).mean())

    def step(gram_FF: Tensor, missing_FD: Tensor, price: float) -> Tensor:
        damped = gram_FF.clone()
        damped.diagonal().add_(price)
        return torch.cholesky_solve(missing_FD, torch.linalg.cholesky_ex(damped).L)

    def change(ridge: float) -> float:
        """What the squared difference changes by on the second half, if the first decides."""
        step_FD = step(grams[0], missing[0], ridge * mean_square)
        return float((step_FD * (grams[1] @ step_FD - 2 * missing[1])).sum())

    changes = {ridge: change(ridge) for ridge in RIDGES}
    best = min(RIDGES, key=lambda ridge: changes[ridge])
    if not changes[best] < 0:  # not a number, either
        return start_DF
    total_FD = step(grams.sum(0), missing.sum(0), 2 * best * mean_square)
    return (start_FD + total_FD).T.to(start_DF.dtype).contiguous()
