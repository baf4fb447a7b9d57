"""The gradient of each divergence penalty, by summing over all tokens that could have been drawn."""

import pytest
import torch

from lnlit.errors import UserError
from lnlit.objectives.kl import ESTIMATORS, KL

V = 7


def policies():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(V, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.log_softmax(torch.randn(V, generator=generator, dtype=torch.float64), 0)


def divergence(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum()


def expected_gradient(kl):
    """Of one token's term in the loss, over the policy's own distribution: sum_v pi(v) grad term_v."""
    logits, reference = policies()
    log_probs = torch.log_softmax(logits, 0)
    drawn = log_probs.exp().detach()
    if kl.place == "reward":  # minus the reward's share, times the score function
        terms = kl.weight * ESTIMATORS[kl.estimator](log_probs - reference).detach() * log_probs
    else:
        terms = kl.penalty(log_probs, reference, log_probs.detach())
    return torch.autograd.grad((drawn * terms).sum(), logits)[0]


def gradient_of(which):
    logits, reference = policies()
    log_probs = torch.log_softmax(logits, 0)
    pairs = {"KL(pi || ref)": (log_probs, reference), "KL(ref || pi)": (reference, log_probs)}
    return torch.autograd.grad(divergence(*pairs[which]), logits)[0]


@pytest.mark.parametrize(
    ("estimator", "place", "which"),
    [
        ("k2", "loss", "KL(pi || ref)"),
        ("k3", "loss", "KL(ref || pi)"),
        ("k1", "score", "KL(pi || ref)"),
        ("k3", "score", "KL(pi || ref)"),
        ("k1", "reward", "KL(pi || ref)"),
    ],
)
def test_every_allowed_form_has_the_gradient_the_table_says(estimator, place, which, record_property):
    found, expected = expected_gradient(KL(0.5, estimator, place)), 0.5 * gradient_of(which)
    record_property("gradient's difference", (found - expected).abs().max().item())
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("estimator", "place"), [("k1", "loss"), ("k2", "score"), ("k2", "reward"), ("k3", "reward")])
def test_every_refused_form_has_the_gradient_of_neither(estimator, place):
    with pytest.raises(UserError, match=f"{estimator} with place: {place} is refused"):
        KL(1.0, estimator, place)
    form = object.__new__(KL)  # past the check
    for name, value in {"weight": 1.0, "estimator": estimator, "place": place}.items():
        object.__setattr__(form, name, value)
    found = expected_gradient(form)
    for which in ("KL(pi || ref)", "KL(ref || pi)"):
        assert (found - gradient_of(which)).abs().max() > 1e-3


def test_k1_in_the_loss_is_nothing_at_all():
    form = object.__new__(KL)
    for name, value in {"weight": 1.0, "estimator": "k1", "place": "loss"}.items():
        object.__setattr__(form, name, value)
    assert expected_gradient(form).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_the_divergence_on_average(name, record_property):
    logits, reference = policies()
    log_probs = torch.log_softmax(logits, 0).detach()
    mean = (log_probs.exp() * ESTIMATORS[name](log_probs - reference)).sum()
    expected = divergence(log_probs, reference)
    record_property("difference", (mean - expected).abs().item())
    torch.testing.assert_close(mean, expected, atol=1e-12, rtol=0)


def test_the_score_form_is_right_for_tokens_of_an_older_policy():
    logits, reference = policies()
    old = torch.log_softmax(logits.detach() + torch.linspace(-0.5, 0.5, V, dtype=torch.float64), 0)
    log_probs = torch.log_softmax(logits, 0)
    mean = (old.exp() * KL(1.0).penalty(log_probs, reference, old)).sum()
    found = torch.autograd.grad(mean, logits)[0]
    torch.testing.assert_close(found, gradient_of("KL(pi || ref)"), atol=1e-12, rtol=0)


def test_k3_is_exact_for_tiny_differences():
    ratio = torch.tensor([1e-9], dtype=torch.float64)
    assert ESTIMATORS["k3"](ratio).item() == pytest.approx(0.5e-18, abs=1e-24)


@pytest.mark.parametrize("place", ["loss", "score"])
def test_a_token_that_the_policy_has_forgotten_does_not_poison_the_step(place):
    now, reference, old = torch.tensor([-120.0], requires_grad=True), torch.tensor([-0.1]), torch.tensor([-220.0])
    found = KL(1.0, "k3", place).penalty(now, reference, old)
    assert found.isfinite() and torch.autograd.grad(found.sum(), now)[0].isfinite()


def test_k3s_gradient_leads_back_to_the_reference_however_far_away():
    distance = torch.linspace(-60.0, 60.0, 241, dtype=torch.float64, requires_grad=True)
    values = ESTIMATORS["k3"](distance)
    slopes = torch.autograd.grad(values.sum(), distance)[0]
    assert (slopes[distance < 0] < 0).all() and (slopes[distance > 0] > 0).all()
    assert (slopes.diff() >= 0).all() and values.isfinite().all()  # convex
    near = distance.detach().abs() < 20
    assert torch.allclose(slopes[near], 1 - (-distance.detach()[near]).exp(), rtol=1e-12)


def test_the_largest_weight_is_one_that_fp32_can_hold():
    now, reference, old = torch.full((1_000_000,), -0.1), torch.full((1,), 0.0), torch.full((1,), -50.0)
    assert KL(1e12).penalty(now, reference + 100, old).sum().isfinite()
    assert KL(1e12, "k3", "loss").penalty(now - 100, reference, old).sum().isfinite()
    with pytest.raises(UserError, match=r"kl.weight: 1e\+13 times a divergence is beyond fp32's largest number"):
        KL(1e13)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_weight_must_be_a_number(weight):
    with pytest.raises(UserError, match="weight: expected"):
        KL(weight)
