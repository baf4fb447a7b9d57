"""What an advantage must be, whatever the rewards."""

import pytest
import torch

from lnlit.objectives.advantage import centred, leave_one_out, over_batch_std, over_group_std, without_spread

ALL = [centred, over_group_std, over_batch_std, leave_one_out]
NAN = float("nan")


def rewards(seed=0, prompts=5, samples=8):
    return torch.rand(prompts, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("advantage", ALL)
def test_the_advantages_of_a_prompt_sum_to_zero(advantage):
    assert advantage(rewards()).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("advantage", ALL)
def test_a_better_reward_never_has_a_lower_advantage(advantage):
    found = advantage(rewards())
    order = rewards().argsort(1)
    assert (found.gather(1, order).diff(dim=1) >= 0).all()


@pytest.mark.parametrize("advantage", ALL)
def test_samples_may_come_in_any_order(advantage):
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(advantage(rewards()[:, order]), advantage(rewards())[:, order], atol=1e-12, rtol=0)


@pytest.mark.parametrize("advantage", ALL)
def test_a_constant_on_all_rewards_changes_nothing(advantage):
    table = torch.randint(0, 4, (5, 8), generator=torch.Generator().manual_seed(2)) / 4
    torch.testing.assert_close(advantage(table + 100), advantage(table), atol=1e-12, rtol=0)


@pytest.mark.parametrize("advantage", ALL)
def test_equal_rewards_teach_nothing(advantage):
    table = torch.full((3, 7), 0.35)  # the mean of seven such fp32 numbers is another number
    assert advantage(table).abs().max() == 0
    assert without_spread(table).all()


@pytest.mark.parametrize("advantage", ALL)
def test_a_near_tie_does_not_explode(advantage):
    # A leave-one-out standard deviation in fp32 makes 4000 of this group.
    table = torch.tensor([[1.0] + [0.35] * 7])
    assert advantage(table).abs().max() < 3


@pytest.mark.parametrize("advantage", ALL)
def test_a_rarer_success_is_worth_more(advantage):
    def of_success(successes):
        table = torch.zeros(1, 16)
        table[0, :successes] = 1
        return advantage(table)[0, 0]

    values = [of_success(successes) for successes in range(1, 16)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("advantage", ALL)
def test_an_unknown_reward_counts_for_nobody(advantage):
    table = rewards(prompts=1)
    holes = torch.cat([table, torch.full((1, 3), NAN)], 1)
    found = advantage(holes)
    torch.testing.assert_close(found[:, :8], advantage(table), atol=1e-12, rtol=0)
    assert found[:, 8:].abs().max() == 0


@pytest.mark.parametrize("advantage", ALL)
@pytest.mark.parametrize("table", [[[NAN, NAN]], [[0.3, NAN]], [[0.3]]])
def test_a_sample_without_known_siblings_has_no_advantage(advantage, table):
    assert advantage(torch.tensor(table)).abs().max() == 0


def test_group_std_is_the_papers_formula():
    table = rewards().double()
    expected = (table - table.mean(1, keepdim=True)) / (table.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(over_group_std(table), expected, atol=1e-12, rtol=0)


def test_batch_std_is_one_number_for_all():
    table = rewards().double()
    expected = (table - table.mean(1, keepdim=True)) / (table.std() + 1e-4)
    torch.testing.assert_close(over_batch_std(table), expected, atol=1e-12, rtol=0)


def test_leave_one_out_is_reward_minus_the_siblings_mean():
    table = rewards().double()
    for sample in range(8):
        siblings = torch.cat([table[:, :sample], table[:, sample + 1 :]], 1)
        expected = table[:, sample] - siblings.mean(1)
        torch.testing.assert_close(leave_one_out(table)[:, sample], expected, atol=1e-12, rtol=0)


def test_prompts_without_spread_are_told():
    table = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [NAN, NAN, NAN], [0.5, NAN, 0.5]])
    assert without_spread(table).tolist() == [True, False, True, True]
