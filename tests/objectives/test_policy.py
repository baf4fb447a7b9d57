"""Policy losses equal the textbook's on padded batches, and refuse what makes no sense."""

import pytest
import torch

from lnlit.errors import UserError
from lnlit.objectives import policy
from lnlit.objectives.policy import Clip, Correction, clipped_loss, log_ratios

LENGTHS = [3, 1, 0, 6, 4]
S, T = len(LENGTHS), max(LENGTHS)


def padded(seed=0):
    """Two policies' log-probs on a padded batch [S, T], its mask, and one advantage per sample."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    return (draw(S, T) / 2).requires_grad_(), draw(S, T) / 2, draw(S), mask


def flat(values, mask):
    return values[mask]


def owners(mask):
    return torch.arange(S)[:, None].expand(S, T)[mask]


@pytest.mark.parametrize("of", ["token", "sequence", "sequence_mean"])
@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "sequence_sum", "constant_length"])
def test_loss_and_gradient_equal_the_padded_form(of, dual, reduction):
    log_probs, old, advantages, mask = padded()
    ratio = (log_probs - old) * mask
    if of != "token":
        ratio = ratio.sum(1, keepdim=True) / (mask.sum(1, keepdim=True).clamp(min=1) if of == "sequence_mean" else 1)
    ratio = ratio.exp().expand(S, T)
    gain = torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.3) * advantages[:, None])
    if dual is not None:
        gain = torch.where(advantages[:, None] < 0, torch.max(gain, dual * advantages[:, None]), gain)
    loss = -gain * mask
    with_tokens = mask.any(1).sum()
    expected = {
        "token_mean": loss.sum() / mask.sum(),
        "sequence_mean": (loss.sum(1) / mask.sum(1).clamp(min=1)).sum() / with_tokens,
        "sequence_sum": loss.sum() / with_tokens,
        "constant_length": loss.sum() / (with_tokens * 10),
    }[reduction]

    sample = owners(mask)
    ratios = log_ratios(flat(log_probs, mask), flat(old, mask), sample, S, of)
    found = clipped_loss(ratios, advantages[sample], Clip(0.2, 0.3, dual))
    arguments = (10,) if reduction == "constant_length" else ()
    weight, count = getattr(policy, reduction)(sample, S, *arguments)
    mean = (weight * found.loss_N).sum() / count
    torch.testing.assert_close(mean, expected, atol=1e-12, rtol=1e-12)
    mine, theirs = (torch.autograd.grad(value, log_probs, retain_graph=True)[0] for value in (mean, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


def test_clipped_tokens_have_no_gradient_and_are_told():
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5, 1.0, 1.0]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    found = clipped_loss(ratio, advantages, Clip())
    gradient = torch.autograd.grad(found.loss_N.sum(), ratio)[0]
    assert found.clipped_low_N.tolist() == [False, True, False, False, False, False]
    assert found.clipped_high_N.tolist() == [False, False, True, False, False, False]
    assert (gradient == 0).tolist() == (found.clipped_low_N | found.clipped_high_N).tolist()


@pytest.mark.parametrize("log_ratio", [30.0, 100.0])
def test_ratios_that_overflow_do_not_poison_the_step(log_ratio):
    ratio = torch.tensor([0.0, log_ratio, log_ratio, log_ratio, -log_ratio]).requires_grad_()
    found = clipped_loss(ratio, torch.tensor([1.0, 1.0, 0.0, -1.0, 1.0]), Clip()).loss_N
    gradient = torch.autograd.grad(found.sum(), ratio)[0]
    assert found.isfinite().all() and gradient.isfinite().all()
    assert gradient[:3].tolist() == [-1, 0, 0]


def test_on_policy_the_gradient_is_reinforce():
    log_probs, _, advantages, mask = padded()
    sample = owners(mask)
    ours = flat(log_probs, mask)
    loss = clipped_loss(ours - ours.detach(), advantages[sample], Clip()).loss_N.sum()
    found = torch.autograd.grad(loss, log_probs)[0]
    torch.testing.assert_close(found, -advantages[:, None] * mask, atol=1e-12, rtol=0)


@pytest.mark.parametrize("outside", ["truncate", "mask"])
def test_correction_weighs_by_the_ratio_within_its_bounds(outside):
    ratio = torch.tensor([0.1, 0.5, 1.0, 2.0, 7.0, 1e30, 0.0], dtype=torch.float64)
    weights = Correction(0.5, 2.0, outside).weights(ratio.log(), torch.zeros(7, dtype=torch.float64))
    truncated, masked = [0.5, 0.5, 1, 2, 2, 2, 0.5], [0, 0.5, 1, 2, 0, 0, 0]
    torch.testing.assert_close(
        weights, torch.tensor(truncated if outside == "truncate" else masked, dtype=torch.float64)
    )


@pytest.mark.parametrize("outside", ["truncate", "mask"])
def test_a_log_prob_that_is_no_number_weighs_nothing(outside):
    weights = Correction(outside=outside).weights(torch.zeros(2), torch.tensor([float("nan"), 0.0]))
    assert weights.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Clip(low=1.5),
        lambda: Clip(high=-0.1),
        lambda: Clip(dual=1.1),
        lambda: Correction(low=1.5),
        lambda: Correction(high=0.9),
    ],
)
def test_bounds_that_make_no_sense_are_refused(make):
    with pytest.raises(UserError):
        make()
