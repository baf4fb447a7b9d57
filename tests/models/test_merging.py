"""Sums of weights against loops by hand, and the arc between two against geometry."""

from __future__ import annotations

import math

import pytest
import torch

from lnlit.models.merging import slerp, weighted_mean, weighted_sum


def tensors(count: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 7, generator=generator).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_mean_is_computed_in_fp32_number_by_number(dtype):
    given, weights = tensors(3, dtype), [0.2, 1.0, -0.4]
    found = weighted_mean(given, weights)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for place in range(35):
        values = [tensor.flatten()[place].item() for tensor in given]
        exact = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
        assert found.flatten()[place].item() == pytest.approx(exact, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_of_one_is_that_one_bit_by_bit(dtype):
    first, second = tensors(2, dtype)
    assert weighted_mean([first, second], [1.0, 0.0]).to(dtype).equal(first)
    assert weighted_sum([second, first], [1.0, 0.0]).to(dtype).equal(second)  # one task vector with the factor 1
    assert slerp(first, second, 0.0).to(dtype).sub(first).abs().max() < 1e-6
    assert weighted_mean([torch.tensor(2.0), torch.tensor(4.0)], [1.0, 1.0]).item() == 3.0


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_point_of_the_arc_divides_the_angle_and_keeps_the_length(t):
    first, second = (tensor / tensor.norm() for tensor in tensors(2, torch.float64))
    found = slerp(first, second, t)
    whole = math.acos((first * second).sum())
    assert found.norm().item() == pytest.approx(1.0, abs=1e-12)
    assert math.acos((first * found).sum().clamp(max=1.0)) == pytest.approx(t * whole, abs=1e-7)
    # In the plane of the two: no part of it is orthogonal to both.
    basis = torch.stack([first.flatten(), second.flatten()])
    rest = found.flatten() - basis.T @ torch.linalg.lstsq(basis.T, found.flatten()).solution
    assert rest.abs().max() < 1e-12


def test_almost_parallel_and_zero_tensors_are_taken_in_a_straight_line():
    first, other = tensors(2, torch.float32)
    for second in (first * 3, -first, first + 1e-4 * other, torch.zeros_like(first)):
        found = slerp(first, second, 0.25)
        expected = 0.75 * first + 0.25 * second
        assert found.isfinite().all()
        if second.any():
            torch.testing.assert_close(found, expected)
