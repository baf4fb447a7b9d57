"""Fitted linears against numpy's least squares, in which a ridge is rows of its own."""

from __future__ import annotations

import numpy
import pytest
import torch

from lnlit.models.least_squares import RIDGES, NormalEquations, fitted

INPUTS, OUTPUTS = 6, 3


def solved(start: numpy.ndarray, x: numpy.ndarray, y: numpy.ndarray, price: float) -> numpy.ndarray:
    """The weight [D, F] by numpy.linalg.lstsq, with a price on its distance to `start`."""
    inputs = numpy.concatenate([x, price**0.5 * numpy.eye(INPUTS)])
    missing = numpy.concatenate([y - x @ start.T, numpy.zeros((INPUTS, OUTPUTS))])
    return start + numpy.linalg.lstsq(inputs, missing, rcond=None)[0].T


def drawn(noise: float, rows: int = 5, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight to start from, inputs [R, T, F] of very different sizes, and outputs of another weight with noise."""
    generator = torch.Generator().manual_seed(4)
    start, true = torch.randn(2, OUTPUTS, INPUTS, generator=generator)
    x = torch.randn(rows, tokens, INPUTS, generator=generator) * torch.tensor([9, 3, 1, 1, 0.3, 0.1])
    return start, x, x @ true.T + noise * torch.randn(rows, tokens, OUTPUTS, generator=generator)


def test_a_fitted_linear_is_the_solution_of_least_squares():
    """The ridge is the one by which the even rows predict the odd ones best."""
    chosen = set()
    for noise in (0.0, 1.0, 30.0):
        weight, x, y = drawn(noise)
        start, x_NF, y_ND = (tensor.reshape(-1, tensor.shape[-1]).double().numpy() for tensor in (weight, x, y))
        even, odd = ([tensor[half::2].flatten(0, 1).double().numpy() for tensor in (x, y)] for half in (0, 1))
        unit = float((x_NF**2).sum()) / INPUTS
        tried = {ridge: solved(start, even[0], even[1], ridge * unit / 2) for ridge in RIDGES}
        errors = {ridge: float(((odd[0] @ found.T - odd[1]) ** 2).sum()) for ridge, found in tried.items()}
        best = min(RIDGES, key=errors.__getitem__)
        assert errors[best] < ((odd[0] @ start.T - odd[1]) ** 2).sum()
        equations = NormalEquations.of_rows(zip(x, y, strict=True))
        got = fitted(weight, equations)
        numpy.testing.assert_allclose(got, solved(start, x_NF, y_ND, best * unit), rtol=1e-4, atol=1e-4)
        for each in (weight, got):
            off = ((x_NF @ each.double().numpy().T - y_ND) ** 2).sum() - (y_ND**2).sum()
            assert equations.distance(each) == pytest.approx(off, rel=1e-5)
        chosen.add(best)
    assert len(chosen) > 1


def test_what_the_rows_say_nothing_about_stays():
    """The two halves contradict each other, one half is all there is, or inputs are zero."""
    start, x, y = drawn(0)
    contradicting = [(x[0], x[0] @ start.T + side * x[0, :, :OUTPUTS]) for side in (1, -1)]
    for rows in (contradicting, [(x[0], y[0])], [(0 * x[0], y[0])] * 2):
        assert torch.equal(fitted(start, NormalEquations.of_rows(rows)), start)


def test_weights_keep_their_dtype():
    start, x, y = drawn(0.1)
    equations = NormalEquations.of_rows(zip(x.bfloat16(), y.bfloat16(), strict=True))
    assert equations.grams.dtype == torch.float64
    assert fitted(start.bfloat16(), equations).dtype == torch.bfloat16
