"""The chunked head and loss equal torch's cross-entropy on all logits."""

import pytest
import torch
from torch.nn import functional as F

from lnlit.objectives.cross_entropy import linear_cross_entropy

N, D, V = 37, 16, 101


def case(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(0, V, (N,), generator=generator)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("chunk_size", [1, 10, 37, 1000])
def test_loss_and_gradients_equal_the_plain_form(chunk_size):
    hidden, weight, labels = case()
    ours = linear_cross_entropy(hidden, weight, labels, chunk_size)
    plain = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-6)
    for mine, theirs in zip(gradients(3 * ours, hidden, weight), gradients(3 * plain, hidden, weight), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_no_positions_give_zero_loss_and_zero_gradients():
    hidden, weight, labels = case()
    loss = linear_cross_entropy(hidden[:0], weight, labels[:0])
    assert loss.item() == 0.0
    assert all(g is not None and not g.any() for g in gradients(loss, hidden, weight))


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, labels = case()
    linear_cross_entropy(hidden, weight.detach(), labels).backward()
    assert hidden.grad is not None and weight.grad is None


def test_autocast_runs_products_in_bf16_and_stays_close():
    hidden, weight, labels = case()
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, labels)
    plain = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    assert 1e-6 < abs(ours - plain) / plain < 1e-2
    assert gradients(ours, weight)[0].dtype == torch.float32
