"""Identities of reward-aware preference optimisation."""

import pytest
import torch
from torch.nn.functional import kl_div, logsigmoid

from lnlit.objectives.preference import LOSSES, backward, dpo, forward, squared

BETA, ETA = 0.1, 3.0


def pairs(count=2, prompts=6):
    generator = torch.Generator().manual_seed(0)
    scores = 20 * torch.randn(prompts, count, generator=generator, dtype=torch.float64)
    return scores.requires_grad_(), torch.rand(prompts, count, generator=generator, dtype=torch.float64)


def z_and_a(scores, rewards, beta=BETA, eta=ETA):
    return beta * (scores[:, 0] - scores[:, 1]), eta * (rewards[:, 0] - rewards[:, 1])


def test_values_of_a_pair_are_the_published_ones():
    scores, rewards = pairs()
    z, a = z_and_a(scores, rewards)
    p, q = z.sigmoid(), a.sigmoid()
    bernoulli = {"p": torch.stack([p, 1 - p], -1), "q": torch.stack([q, 1 - q], -1)}
    expected = {
        "backward": (bernoulli["q"] * (bernoulli["q"] / bernoulli["p"]).log()).sum(-1),
        "forward": (bernoulli["p"] * (bernoulli["p"] / bernoulli["q"]).log()).sum(-1),
        "squared": (z - a).square(),
        "dpo": -logsigmoid(z * (a).sign()),
    }
    for name, loss in LOSSES.items():
        torch.testing.assert_close(BETA * loss(scores, rewards, BETA, ETA), expected[name], atol=1e-12, rtol=1e-10)


def test_gradients_of_a_pair_are_the_published_ones(record_property):
    scores, rewards = pairs()
    z, a = (value.detach() for value in z_and_a(scores, rewards))
    p, q = z.sigmoid(), a.sigmoid()
    expected = {
        "backward": p - q,
        "forward": p * (1 - p) * (z - a),
        "squared": 2 * (z - a),
        "dpo": torch.where(a > 0, p - 1, p),
    }
    for name, loss in LOSSES.items():
        found = torch.autograd.grad(loss(scores, rewards, BETA, ETA).sum(), scores)[0]
        published = torch.stack([expected[name], -expected[name]], -1)
        record_property("gradient's difference", (found - published).abs().max().item())
        torch.testing.assert_close(found, published, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("count", [2, 5])
def test_dpo_is_the_limit_of_a_certain_reward(count):
    scores, rewards = pairs(count)
    torch.testing.assert_close(
        backward(scores, rewards, BETA, 1e6), dpo(scores, rewards, BETA, ETA), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("rewards", [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
def test_dpo_takes_equally_good_completions_for_equals(rewards):
    scores = torch.tensor([[0.3, -2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([rewards], dtype=torch.float64)
    values = [backward(scores, rewards, BETA, 1e6), dpo(scores, rewards, BETA, ETA)]
    gradients = [torch.autograd.grad(value.sum(), scores)[0] for value in values]
    torch.testing.assert_close(*values, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("count", [2, 5])
def test_which_completion_comes_first_does_not_matter(name, count):
    scores, rewards = pairs(count)
    order = torch.arange(count).flip(0)
    torch.testing.assert_close(
        LOSSES[name](scores[:, order], rewards[:, order], BETA, ETA), LOSSES[name](scores, rewards, BETA, ETA)
    )


@pytest.mark.parametrize("loss", [backward, forward, squared])
@pytest.mark.parametrize("count", [2, 5])
def test_the_optimum_is_where_both_rewards_agree(loss, count):
    _, rewards = pairs(count)
    scores = (ETA / BETA * rewards + 7.0).requires_grad_()  # a constant of the prompt is free
    value = loss(scores, rewards, BETA, ETA).sum()
    assert abs(value.item()) < 1e-12
    assert torch.autograd.grad(value, scores)[0].abs().max() < 1e-12


def test_many_completions_are_a_divergence_of_softmaxes():
    scores, rewards = pairs(5)
    policy, target = torch.log_softmax(BETA * scores, -1), torch.log_softmax(ETA * rewards, -1)
    found = BETA * backward(scores, rewards, BETA, ETA)
    torch.testing.assert_close(found, kl_div(policy, target, reduction="none", log_target=True).sum(-1))
    gradient = torch.autograd.grad(backward(scores, rewards, BETA, ETA).sum(), scores)[0]
    torch.testing.assert_close(gradient, (policy.exp() - target.exp()).detach(), atol=1e-12, rtol=1e-9)


def test_the_squared_loss_at_the_reference_is_reinforce_with_a_group_mean():
    _, rewards = pairs(4)
    scores = torch.zeros_like(rewards).requires_grad_()
    found = torch.autograd.grad(squared(scores, rewards, BETA, ETA).sum(), scores)[0]
    centred = rewards - rewards.mean(-1, keepdim=True)
    torch.testing.assert_close(found, -4 * ETA / 3 * centred, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("loss", [backward, forward, squared])
def test_the_papers_tiny_beta_leaves_a_gradient_to_learn_from(loss):
    scores, rewards = pairs()
    small = torch.autograd.grad(loss(scores, rewards, 1e-5, 3.0).sum(), scores)[0]
    assert small.abs().max() > 0.05
