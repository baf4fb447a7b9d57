"""Algorithms that TRL has not, against loops by hand, and every registered one against the contract."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import PolicyBatch, RewardResult, RewardTable, TokenBatch
from lnlit.modules import policy, prompt_data
from lnlit.objectives.kl import KL
from lnlit.objectives.policy import Correction
from lnlit.rl import collector, on_policy
from lnlit.rl.cispo import CISPO
from lnlit.rl.dppo import DPPO
from lnlit.rl.gdpo import GDPO
from lnlit.rl.grpo import GRPO
from lnlit.rl.max_rl import MaxRL
from lnlit.rl.reinforce_plus_plus import ReinforcePlusPlus
from lnlit.rl.rloo import RLOO
from lnlit.rl.rpo import RPO
from lnlit.rl.sapo import SAPO
from lnlit.rl.vespo import VESPO
from lnlit.sampling import sampler
from lnlit.testing.algorithm_contract import check_algorithm

REQUIRED = {"rpo": {"beta": 0.1}}
NAN = math.nan


@pytest.mark.parametrize("name", registry.names("algorithm"))
def test_every_algorithm_keeps_the_contract_and_is_short(name):
    algorithm = registry.build("algorithm", name, **REQUIRED.get(name, {}))
    check_algorithm(algorithm)
    (written,) = ast.parse(inspect.getsource(type(algorithm))).body
    assert written.end_lineno - written.lineno < 45


@pytest.mark.parametrize(
    "algorithm",
    [
        GRPO(scale_rewards="none", reduction="constant_length", kl=KL(0.1)),
        GRPO(ratio="sequence_mean", reduction="sequence_mean", correction=None),
        GRPO(scale_rewards="batch", kl=KL(0.1, "k1", "reward")),
        RLOO(ratio="sequence", correction=None),
        ReinforcePlusPlus(baseline="none"),
        RPO(beta=0.1, anchor="old_policy", objective="squared"),
    ],
)
def test_settings_keep_the_contract(algorithm):
    check_algorithm(algorithm)


def test_who_trains_and_who_samples_knows_no_algorithm():
    """Each may import what all algorithms share, and none of them."""
    names = {registry.find("algorithm", name).target.partition(":")[0] for name in registry.names("algorithm")}
    for module in (policy, prompt_data, collector, on_policy, sampler):
        imported = {node.module for node in ast.walk(ast.parse(inspect.getsource(module))) if hasattr(node, "module")}
        assert not imported & names, module.__name__


@dataclass(frozen=True, kw_only=True)
class Raw(GRPO):
    """The ones below break one promise each."""

    def advantages(self, table):
        return table.reward_PG


class Ranked(Raw):
    def advantages(self, table):
        return table.reward_PG.nan_to_num().argsort(1).double()


class Averaged(GRPO):
    def loss(self, log_probs_N, batch):
        found = super().loss(log_probs_N, batch)
        return found._replace(total=found.total / max(found.count, 1), count=1)


class Upwards(GRPO):
    def loss(self, log_probs_N, batch):
        found = super().loss(log_probs_N, batch)
        return found._replace(total=-found.total)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (Raw, "without a reward has the advantage 0"),
        (Ranked, "better of two samples|no difference"),
        (Averaged, "add up"),
        (Upwards, "more likely"),
    ],
)
def test_the_contract_finds_broken_ones(broken, says):
    with pytest.raises(AssertionError, match=f"{broken.__name__}: .*({says})"):
        check_algorithm(broken())


# advantages, sample by sample

REWARDS = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, NAN, 0.0, 0.0], [0.5, 0.5, 0.5, 2.0]]
SECOND = [[0.1, 0.9, 0.2, 0.3], [0.4, 0.4, 0.4, 0.5], [5.0, 1.0, 1.0, 2.0], [0.0, 0.0, 1.0, 1.0]]
LENGTHS = [[3, 5, 1, 2], [4, 4, 4, 4], [0, 7, 2, 2], [1, 1, 9, 3]]


def table(*columns: list[list[float]], weights=(1.0,)) -> RewardTable:
    rewards_PGR = torch.tensor(columns, dtype=torch.float64).movedim(0, -1)
    lengths_PG = torch.tensor(LENGTHS)
    zeros_PG = torch.zeros(lengths_PG.shape, dtype=torch.float64)
    return RewardTable(rewards_PGR, torch.tensor(weights, dtype=torch.float64), lengths_PG, zeros_PG)


def known(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def test_max_rl_divides_by_the_share_that_is_solved():
    expected = []
    for row in REWARDS:
        mean = sum(known(row)) / len(known(row))
        expected.append([(r - mean) / mean if mean > 0 and not math.isnan(r) else 0.0 for r in row])
    torch.testing.assert_close(MaxRL().advantages(table(REWARDS)), torch.tensor(expected, dtype=torch.float64))


def test_max_rl_has_the_gradient_of_the_likelihood():
    """With a baseline the estimate keeps its mean: sum over k of grad pass@k / k, up to the number of samples."""
    p, samples = 0.3, 3
    mean = 0.0
    for outcome in range(2**samples):
        rewards = [float(outcome >> at & 1) for at in range(samples)]
        chance = math.prod(p if r else 1 - p for r in rewards)
        found = MaxRL().advantages(
            RewardTable(
                torch.tensor([rewards], dtype=torch.float64)[..., None],
                torch.ones(1),
                torch.ones(1, samples, dtype=torch.int64),
                torch.zeros(1, samples),
            )
        )[0]
        scores = torch.tensor([1 / p if r else -1 / (1 - p) for r in rewards], dtype=torch.float64)  # d log chance / dp
        mean += chance * float((found * scores).mean())
    # d/dp of -sum_{k=1}^{G} (1 - p)^k / k, without its last term, which the baseline's own sample takes
    assert mean == pytest.approx(sum((1 - p) ** (k - 1) for k in range(1, samples)))


def test_gdpo_normalises_each_reward_by_itself():
    weights = (1.0, 0.5)
    sums = []
    for rows in zip(REWARDS, SECOND, strict=True):
        total = [0.0] * 4
        lacks = [any(map(math.isnan, verdicts)) for verdicts in zip(*rows, strict=True)]
        for row, weight in zip(rows, weights, strict=True):
            row = [NAN if lack else reward for reward, lack in zip(row, lacks, strict=True)]
            mean, std = sum(known(row)) / len(known(row)), deviation(known(row))
            total = [t + weight * (r - mean) / (std + 1e-4) for t, r in zip(total, row, strict=True)]
        sums.append(total)
    flat = known([value for row in sums for value in row])
    mean, std = sum(flat) / len(flat), deviation(flat)
    expected = [[0.0 if math.isnan(v) else (v - mean) / (std + 1e-4) for v in row] for row in sums]
    found = GDPO().advantages(table(REWARDS, SECOND, weights=weights))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    by_sum = GRPO().advantages(table([[1.0, 0.0, 0.0, 1.0]] * 4, [[0.0, 1.0, 0.0, 1.0]] * 4, weights=(1.0, 1.0)))
    apart = GDPO().advantages(table([[1.0, 0.0, 0.0, 1.0]] * 4, [[0.0, 1.0, 0.0, 0.1]] * 4, weights=(1.0, 1.0)))
    assert by_sum[0, 0] == by_sum[0, 1] and apart[0, 0] != apart[0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_a_verdict_that_is_missing_moves_no_prompt_whose_samples_are_equal(seed):
    """Nor any other sample than its prompt's: that one is left out, whichever of its rewards is missing."""
    generator = torch.Generator().manual_seed(seed)
    rewards_PGR = torch.randint(0, 4, (4, 4, 2), generator=generator).double()
    rewards_PGR[0] = rewards_PGR[0, 0]
    weights_R = torch.rand(2, generator=generator, dtype=torch.float64) + 0.1
    prompt, sample = int(torch.randint(1, 4, (1,), generator=generator)), seed % 4
    found = []
    for missing in ([0], [1], [0, 1]):
        lacking_PGR = rewards_PGR.clone()
        lacking_PGR[prompt, sample, missing] = NAN
        zeros_PG = torch.zeros(4, 4, dtype=torch.float64)
        found.append(GDPO().advantages(RewardTable(lacking_PGR, weights_R, zeros_PG.long(), zeros_PG)))
    for advantages_PG in found:
        assert advantages_PG[0].abs().max() < 1e-12 and advantages_PG[prompt, sample] == 0
        assert advantages_PG.sum(1).abs().max() < 1e-9
        assert torch.equal(advantages_PG, found[-1])


def test_gdpo_ignores_what_is_only_watched():
    alone = GDPO().advantages(table(REWARDS))
    watched = GDPO().advantages(table(REWARDS, [[NAN] * 4] * 4, weights=(1.0, 0.0)))
    assert torch.equal(alone, watched)


@pytest.mark.parametrize("baseline", ["group", "none"])
def test_reinforce_plus_plus_normalises_over_tokens(baseline):
    values, tokens = [], []
    for row, lengths in zip(REWARDS, LENGTHS, strict=True):
        mean = sum(known(row)) / len(known(row)) if baseline == "group" else 0.0
        for reward, length in zip(row, lengths, strict=True):
            values.append(0.0 if math.isnan(reward) else reward - mean)
            tokens += [values[-1]] * (0 if math.isnan(reward) else length)
    mean = sum(tokens) / len(tokens)
    std = math.sqrt(sum((value - mean) ** 2 for value in tokens) / len(tokens))
    found = ReinforcePlusPlus(baseline=baseline).advantages(table(REWARDS)).flatten().tolist()
    for value, reward, length, mine in zip(values, chain(*REWARDS), chain(*LENGTHS), found, strict=True):
        learned = length and not math.isnan(reward)
        assert mine == pytest.approx((value - mean) / std if learned else 0.0)


def test_prompts_that_teach_nothing_are_those_that_move_no_weight():
    """Held against the advantages of all prompts that are compared."""
    sums = (
        [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.5, 0.0], [1.0] * 4, [NAN] * 4],
        [[0.0, 1.0, 1.0, 0.0], [0.0] * 4, [2.0] * 4, [1.0] * 4],
    )
    both = table(*sums, weights=(1.0, 1.0))
    assert GRPO().teaches_nothing(both).tolist() == [True, False, True, True]
    for algorithm in (GRPO(), GDPO(), RLOO(), RPO(beta=0.1)):
        for each in (both, table(REWARDS), table(REWARDS, SECOND, weights=(1.0, 0.0))):
            still_PG = algorithm.advantages(each)[algorithm.teaches_nothing(each)]
            assert len(still_PG) and still_PG.abs().max() < 1e-12, algorithm
    apart = table(
        [[1.0, 0.0, 0.0, 1.0]] * 4, [[0.0, 1.0, 1.0, 0.0], [0.5] * 4, [0.0] * 4, [1.0] * 4], weights=(1.0, 2.0)
    )
    assert not GDPO().teaches_nothing(apart).any()
    uneven = table([[0.0, 0.0, 1.0, 0.5]] * 4, [[1.0, 1.0, 0.0, 0.5]] * 4, weights=(1.0, 1.0))
    assert GRPO().teaches_nothing(uneven).all() and not GDPO().teaches_nothing(uneven).any()
    alone = ReinforcePlusPlus(baseline="none")
    assert alone.teaches_nothing(both).tolist() == [False, False, False, True]
    assert (alone.advantages(both) != 0).any(1).tolist()[:3] == [True] * 3


def test_max_rl_takes_no_reward_below_nothing():
    with pytest.raises(UserError, match=r"MaxRL divides .* so none may be below 0; a sample got -0\.5"):
        MaxRL().advantages(table([[1.0, -0.5, 0.0, NAN]] * 4))


# losses, token by token


def test_dppo_leaves_out_what_has_moved_too_far():
    now = [-0.1, -3.0, -2.0, -0.2, -4.0]
    engine = [-0.5, -3.1, -0.1, -2.5, -1.0]
    advantages = [1.0, 1.0, -1.0, -1.0, 2.0]
    log_probs = torch.tensor(now, dtype=torch.float64, requires_grad=True)
    row = torch.zeros(1, 5, dtype=torch.int64)
    batch = PolicyBatch(
        TokenBatch(row, row, row, [5]),
        torch.tensor([0, 0, 1, 1, 1]),
        2,
        torch.tensor(advantages, dtype=torch.float64),
        engine_N=torch.tensor(engine, dtype=torch.float64),
    )
    loss = DPPO(max_probability_change=0.2).loss(log_probs, batch)
    (gradient,) = torch.autograd.grad(loss.total, log_probs)
    expected, total, dropped = [], 0.0, []
    for ours, theirs, advantage in zip(now, engine, advantages, strict=True):
        moved = math.exp(ours) - math.exp(theirs)
        dropped.append((advantage > 0 and moved > 0.2) or (advantage < 0 and moved < -0.2))
        term = 0.0 if dropped[-1] else -advantage * math.exp(ours - theirs)
        total += term
        expected.append(term)
    assert dropped == [True, False, True, False, False]
    assert loss.total.item() == pytest.approx(total) and loss.count == 5
    assert gradient.tolist() == pytest.approx(expected)
    assert [float(loss.observed[f"clip_ratio/{side}_mean"][0]) for side in ("low", "high")] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_settings_are_as_precise_as_the_log_probs(dtype):
    """Two settings, of which an advantage's sign chooses one: 1.05 and 0.7 have no exact binary form."""
    now, old = [-0.4, -1.1, -2.0, -0.2], [-0.5, -1.0, -1.7, -0.3]
    advantages, owners = [0.7, 0.7, -1.3, -1.3], [0, 0, 1, 1]
    row = torch.zeros(1, 4, dtype=torch.int64)
    old_N = torch.tensor(old, dtype=dtype)
    batch = PolicyBatch(
        TokenBatch(row, row, row, [4]), torch.tensor(owners), 2, torch.tensor(advantages, dtype=dtype), old_N, old_N
    )
    log_probs = torch.tensor(now, dtype=dtype)
    gates = [0.7 if advantage > 0 else 1.05 for advantage in advantages]
    soft = [
        -4 / t / (1 + math.exp(-t * (math.exp(new - before) - 1))) * advantage
        for t, new, before, advantage in zip(gates, now, old, advantages, strict=True)
    ]
    found = SAPO(positive_temperature=0.7, reduction="token_mean", correction=None).loss(log_probs, batch).total
    precision = 1e-14 if dtype == torch.float64 else 1e-6
    assert found.item() == pytest.approx(sum(soft), rel=precision)
    weighed = 0.0
    for new, advantage, owner in zip(now, advantages, owners, strict=True):
        log_w = sum(n - o for n, o, whose in zip(now, old, owners, strict=True) if whose == owner)
        k, l = (2.1, 3.3) if advantage >= 0 else (3.7, 1.9)
        weighed -= math.exp(l + k * log_w - l * math.exp(log_w)) * advantage * new
    found = VESPO(positive=(2.1, 3.3), negative=(3.7, 1.9)).loss(log_probs, batch).total
    assert found.item() == pytest.approx(weighed, rel=precision)


def test_a_bound_that_there_is_not_is_not_logged():
    sides = {"clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"}
    row = torch.zeros(1, 2, dtype=torch.int64)
    batch = PolicyBatch(TokenBatch(row, row, row, [2]), torch.tensor([0, 1]), 2, torch.tensor([1.0, -1.0]))
    expected = {GRPO: sides, CISPO: sides - {"clip_ratio/low_mean"}, DPPO: sides, SAPO: set(), VESPO: set()}
    for kind, names in expected.items():
        assert kind().loss(torch.tensor([-1.0, -2.0]), batch).observed.keys() & sides == names, kind


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UserError, match="GDPO normalises each reward by itself"):
        GDPO(kl=KL(0.1, "k1", "reward"))
    with pytest.raises(UserError, match="a divergence can bring to nothing"):
        MaxRL(kl=KL(0.1, "k1", "reward"))
    with pytest.raises(UserError, match="correction weighs tokens"):
        GRPO(ratio="sequence_mean")
    with pytest.raises(UserError, match="beta: expected a number above 0"):
        RPO(beta=0.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: KL(0.1, "k1", "Loss"), "kl.place: expected one of loss, score, reward, got 'Loss'"),
        (lambda: KL("0.1"), "kl.weight: expected a finite number, got '0.1'"),
        (lambda: Correction(outside="Truncate"), "correction.outside: expected one of truncate, mask"),
        (lambda: GRPO(scale_rewards="Group"), "GRPO.scale_rewards: expected one of group, batch, none"),
        (lambda: GRPO(clip=0.2), "GRPO.clip: expected a mapping, got 0.2"),
        (lambda: ReinforcePlusPlus(baseline="Group"), "ReinforcePlusPlus.baseline: expected one of"),
        (lambda: VESPO(positive=(1.0,)), "VESPO.positive: expected a list of 2"),
        (lambda: RPO(beta="0.1"), "RPO.beta: expected a finite number, got '0.1'"),
        (lambda: CISPO(max_ratio=None), "CISPO.max_ratio: expected a finite number, got null"),
    ],
)
def test_settings_are_checked_in_python_as_on_the_command_line(make, says):
    with pytest.raises(UserError, match=re.escape(says)):
        make()


def test_an_algorithm_of_ones_own_may_have_a_setting_of_any_type():
    @dataclass(frozen=True, kw_only=True)
    class Shaped(GRPO):
        shape: Callable[[float], float] = abs

    assert Shaped().shape is abs
    with pytest.raises(UserError, match=r"Shaped\.scale_rewards: expected one of"):
        Shaped(scale_rewards="Group")


def test_a_reward_that_fp32_cannot_hold_is_refused():
    weighted = SimpleNamespace(weights={"long": 1e300, "seen": 0.0})
    judged = {"long": RewardResult(2.0), "seen": RewardResult(None, "not asked")}
    with pytest.raises(UserError, match=r"data.rewards: the sum of 1e\+300 x 2.0 \(long\).*fp32's largest"):
        sampler.Sampler._sum(weighted, judged)
    weighted.weights["long"] = 1e30
    assert sampler.Sampler._sum(weighted, judged) == 2e30
