"""Each classic mistake, put into a copy of an objective, fails the test that is there to find it."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest
import test_advantage
import test_kl
import test_policy
import test_preference_losses

from lnlit.objectives import advantage, kl, policy, preference


def untold(name: str, value: float) -> None:
    """Where a test's figures go that fails on purpose."""


BROKEN = {
    "flipped sign": (
        policy,
        "loss_N = -torch.minimum(",
        "loss_N = torch.minimum(",
        lambda: test_policy.test_on_policy_the_gradient_is_reinforce(),
    ),
    "optimistic bound": (
        policy,
        "-torch.minimum(",
        "-torch.maximum(",
        lambda: test_policy.test_clipped_tokens_have_no_gradient_and_are_told(),
    ),
    "dropped mask": (
        policy,
        "torch.where((ratio_N >= self.low) & (ratio_N <= self.high), ratio_N, 0.0)",
        "ratio_N",
        lambda: test_policy.test_correction_weighs_by_the_ratio_within_its_bounds("mask"),
    ),
    "mean over padding": (
        policy,
        "1 / length_S[sample_N].double()",
        "1 / length_S.max().expand(len(sample_N)).double()",
        lambda: test_policy.test_loss_and_gradient_equal_the_padded_form("token", None, "sequence_mean"),
    ),
    "samples without tokens counted": (
        policy,
        "Reduction(1 / length_S[sample_N].double(), int((length_S > 0).sum()))",
        "Reduction(1 / length_S[sample_N].double(), samples)",
        lambda: test_policy.test_loss_and_gradient_equal_the_padded_form("token", None, "sequence_mean"),
    ),
    "dual clip for good samples too": (
        policy,
        "torch.where(advantages_N < 0, torch.minimum(",
        "torch.where(advantages_N != 0, torch.minimum(",
        lambda: test_policy.test_loss_and_gradient_equal_the_padded_form("token", 3.0, "token_mean"),
    ),
    "k3 for k1": (
        kl,
        '"k1": k1,',
        '"k1": k3,',
        lambda: test_kl.test_every_allowed_form_has_the_gradient_the_table_says(
            "k1", "reward", "KL(pi || ref)", untold
        ),
    ),
    "no score term": (
        kl,
        "estimate_N = estimate_N * bounded_exp(log_probs_N - old_N)",
        "pass",
        lambda: test_kl.test_every_allowed_form_has_the_gradient_the_table_says("k3", "score", "KL(pi || ref)", untold),
    ),
    "its own sample in the baseline": (
        advantage,
        "centred(rewards_PG) * count_P1 / (count_P1 - 1).clamp(min=1)",
        "centred(rewards_PG)",
        lambda: test_advantage.test_leave_one_out_is_reward_minus_the_siblings_mean(),
    ),
    "deviation of the population": (
        advantage,
        "squares_P1 / (count_P1 - 1).clamp(min=1)",
        "squares_P1 / count_P1.clamp(min=1)",
        lambda: test_advantage.test_group_std_is_the_papers_formula(),
    ),
    "divergence the other way round": (
        preference,
        "(policy_PK.exp() * (policy_PK - target_PK))",
        "(target_PK.exp() * (target_PK - policy_PK))",
        lambda: test_preference_losses.test_values_of_a_pair_are_the_published_ones(),
    ),
    "gradient lost in beta": (
        preference,
        "policy_PK - target_PK)).sum(-1) / beta",
        "policy_PK - target_PK)).sum(-1)",
        lambda: test_preference_losses.test_gradients_of_a_pair_are_the_published_ones(untold),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_found(name, monkeypatch):
    module, right, wrong, test = BROKEN[name]
    test()
    source = inspect.getsource(module)
    assert source.count(right) == 1
    copy = ModuleType(module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, copy)  # dataclasses look their module up
    exec(compile(source.replace(right, wrong), "broken copy", "exec"), copy.__dict__)
    for own in (test_advantage, test_kl, test_policy, test_preference_losses):
        for key, value in list(vars(own).items()):
            if value is module:
                monkeypatch.setattr(own, key, copy)
            elif getattr(value, "__module__", None) == module.__name__ and hasattr(copy, key):
                monkeypatch.setattr(own, key, getattr(copy, key))
    for table in ("ESTIMATORS", "LOSSES"):
        for own in (test_kl, test_preference_losses):
            if hasattr(own, table) and hasattr(copy, table):
                monkeypatch.setattr(own, table, getattr(copy, table))
    with pytest.raises(AssertionError):
        test()
