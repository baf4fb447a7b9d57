"""The distance of hidden states, and the gradient that its forward pass computes."""

import pytest
import torch
from torch.nn import functional as F

from lnlit.objectives.cosine import cosine_distance

D = 12


def test_the_distance_and_its_gradient_equal_the_definition():
    generator = torch.Generator().manual_seed(1)
    states, target = (torch.randn(3, 5, D, generator=generator, dtype=torch.float64) for _ in range(2))
    states.requires_grad_()
    weights = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    ours, expected = cosine_distance(states, target), 1 - F.cosine_similarity(states, target, dim=-1)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)
    mine, theirs = (torch.autograd.grad((weights * each).sum(), states)[0] for each in (ours, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(cosine_distance(states, target), expected, atol=1e-10, rtol=1e-10)


def test_the_distance_is_fp32_and_the_gradient_of_the_states_dtype():
    states = torch.randn(2, 3, D, dtype=torch.bfloat16, requires_grad=True)
    distance = cosine_distance(states, 8 * states.detach())
    assert distance.dtype == torch.float32 and distance.abs().max() < 1e-5
    distance.sum().backward()
    assert states.grad is not None and states.grad.dtype == torch.bfloat16


def test_parallel_orthogonal_opposite_and_zero_states():
    x = torch.tensor([[2.0, 0], [1, 0], [3, 0], [0, 0]])
    y = torch.tensor([[5.0, 0], [0, 4], [-1, 0], [1, 0]])
    assert cosine_distance(x, y).tolist() == pytest.approx([0, 1, 2, 1])
