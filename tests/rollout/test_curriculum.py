"""A curriculum's batches: full, from easy to hard, every prompt in its turn, and the same after a kill."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from fractions import Fraction
from statistics import NormalDist, fmean

import numpy as np
import pytest

from lnlit.errors import UserError
from lnlit.sampling.curriculum import GaussianCurriculum, allocate, rationed

#: Prompts of each pass rate from 0/8 to 8/8.
POOLS = {
    "even": [40] * 9,
    "mostly hard": [160, 60, 48, 44, 44, 44, 0, 0, 0],
    "mostly easy": [20, 24, 32, 48, 80, 196, 0, 0, 0],
    "hard or easy": [120, 32, 28, 24, 24, 24, 28, 40, 80],
    "middling": [8, 20, 48, 200, 48, 20, 8, 0, 0],
    "with gaps": [200, 0, 0, 4, 0, 0, 16, 0, 180],
}


def rows(pools: list[int]) -> list[dict]:
    return [{"pass_rate": level / 8} for level, count in enumerate(pools) for _ in range(count)]


def curriculum(pools: list[int], rollouts: int, seed: int = 0, **settings) -> GaussianCurriculum:
    order = GaussianCurriculum(**settings)
    order.start(rows(pools), seed, rollouts)
    return order


def means(pools: list[int], batches: list[list[int]]) -> list[float]:
    prompts = rows(pools)
    return [fmean(prompts[index]["pass_rate"] for index in batch) for batch in batches]


@pytest.mark.parametrize("share", [0.2, 0.7, 1.0, 2.0, 2.6])
@pytest.mark.parametrize("pools", POOLS.values(), ids=POOLS)
def test_batches_are_full_and_grow_harder(pools, share):
    rollouts = max(int(sum(pools) * share / 24), 3)
    order = curriculum(pools, rollouts)
    batches = [order.take(24) for _ in range(rollouts)]
    assert all(len(set(batch)) == 24 for batch in batches)
    found = means(pools, batches)
    wanted = [float(np.dot(order.target(n), order.rates)) for n in range(rollouts)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(wanted))
    assert sum(max(after - before, 0) for before, after in itertools.pairwise(found[:-1])) < 0.35 * (
        found[0] - found[-1]
    )
    thirds = [fmean(part) for part in np.array_split(found, 3)]
    assert thirds[0] > thirds[1] > thirds[2]


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("pools", POOLS.values(), ids=POOLS)
def test_a_run_over_all_prompts_takes_each_once_per_epoch(pools, epochs):
    count = next(size for size in range(16, 40) if sum(pools) % size == 0)
    rollouts = sum(pools) // count * epochs
    order = curriculum(pools, rollouts)
    seen = Counter(index for _ in range(rollouts) for index in order.take(count))
    assert set(seen) == set(range(sum(pools))) and set(seen.values()) == {epochs}


def test_a_prompt_comes_again_after_all_of_its_pass_rate():
    pools = POOLS["mostly easy"]
    order, level = curriculum(pools, 60), [row["pass_rate"] for row in rows(pools)]
    seen = [0] * sum(pools)
    for _ in range(60):
        for index in order.take(20):
            seen[index] += 1
        for rate in order.rates:
            times = [count for count, own in zip(seen, level, strict=True) if own == rate]
            assert max(times) - min(times) <= 1
    assert max(seen) == 3


def test_prompts_of_a_batch_are_shuffled():
    order = curriculum(POOLS["even"], 20)
    prompts = rows(POOLS["even"])
    rates = [prompts[index]["pass_rate"] for index in order.take(40)]
    assert rates != sorted(rates) and rates != sorted(rates, reverse=True)


def test_the_seed_decides_and_nothing_else():
    def batches(seed):
        order = curriculum(POOLS["even"], 10, seed)
        return [order.take(16) for _ in range(10)]

    assert batches(3) == batches(3) != batches(4)


CALLS = {
    "counts": [(24,), (24,), (5,), (24,), (2,), (1,)] * 8,
    "rollouts": [(24, n // 3) if n % 3 else (24 - n % 5, n // 3) for n in range(48)],
}


@pytest.mark.parametrize("stop", [0, 1, 7, 23, 40])
@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_a_resumed_run_takes_the_same_batches(calls, stop):
    pools = POOLS["mostly hard"]
    whole = curriculum(pools, 30)
    wanted = [whole.take(*call) for call in calls]
    first = curriculum(pools, 30)
    begun = [first.take(*call) for call in calls[:stop]]
    state = json.loads(json.dumps(first.state_dict()))
    second = curriculum(pools, 99)  # a longer run now, but one that was begun
    second.load_state_dict(state)
    assert begun + [second.take(*call) for call in calls[stop:]] == wanted
    assert second.state_dict() == whole.state_dict()


def test_the_state_is_small_and_knows_its_prompts():
    order = curriculum(POOLS["even"], 1000)
    for _ in range(200):
        order.take(16)
    assert len(json.dumps(order.state_dict())) < 200
    other = curriculum(POOLS["middling"], 1000)
    with pytest.raises(UserError, match="begun with pools of"):
        other.load_state_dict(order.state_dict())


@pytest.mark.parametrize("more", [12, 20])
def test_more_prompts_for_a_rollout_are_as_hard_and_none_of_the_same(more):
    order, plain = curriculum(POOLS["even"], 6), curriculum(POOLS["even"], 6)
    for rollout in range(6):
        first, second = order.take(20, rollout), order.take(more, rollout)
        assert len(set(first) | set(second)) == 20 + more
        wanted = means(POOLS["even"], [plain.take(20)])[0]
        assert means(POOLS["even"], [first, second]) == pytest.approx([wanted] * 2, abs=0.1)


@pytest.mark.parametrize("pools", list(POOLS.values()), ids=list(POOLS))
def test_no_prompt_comes_twice_in_a_rollout_however_many_were_replaced(pools):
    order = curriculum(pools, 5)
    for rollout in range(5):
        taken = [index for _ in range(6) for index in order.take(sum(pools) // 6, rollout)]
        assert len(set(taken)) == len(taken)


def test_without_rationing_the_shares_are_the_gaussians():
    scarce = [200, 4, 4, 4, 200]
    gaussian = curriculum(scarce, 20, levels=4, easiest=1.0, hardest=0.0, rationing=False)
    rationed_ = curriculum(scarce, 20, levels=4, easiest=1.0, hardest=0.0)
    for order in (gaussian, rationed_):
        order.take(20)
    for rollout, centre in enumerate(np.linspace(1, 0, 20)):
        density = [NormalDist(centre, 0.15).pdf(rate) for rate in gaussian.rates]
        assert gaussian.target(rollout) == pytest.approx([value / sum(density) for value in density])
    assert max(map(abs, np.subtract(gaussian.target(10), rationed_.target(10)))) > 0.1
    with pytest.raises(UserError, match=r"GaussianCurriculum.rationing: the run was begun with False, now it is True"):
        rationed_.load_state_dict(gaussian.state_dict())


def test_a_call_for_fewer_tops_up_the_last_rollout():
    one, other = curriculum(POOLS["even"], 6), curriculum(POOLS["even"], 6)
    for rollout in range(6):
        assert one.take(20) == other.take(20, rollout)
        assert one.take(7) == other.take(7, rollout)


def test_more_may_be_taken_than_was_planned():
    order = curriculum([3, 0, 0, 0, 2], 2)
    seen = Counter(index for _ in range(20) for index in order.take(4))
    assert set(seen) == set(range(5)) and max(seen.values()) - min(seen.values()) <= 2
    assert all(len(set(order.take(4))) == 4 for _ in range(10))
    assert Counter(curriculum([3, 0, 0, 0, 2], 1).take(10)) == dict.fromkeys(range(5), 2)


def test_leftovers_go_to_the_largest_pool():
    # Wanted of 10 places: 1, 2, 4, 3. The third pool has 1 left, the fourth none: 6 places stay free. The pools then
    # have 4, 7, 0, 0; places go to the second until it has 4 (three times), then, as equals, to the second and on
    # in turn, the easier first: second 3, first 3, second 2.
    assert allocate([5, 9, 1, 0], [0.1, 0.2, 0.4, 0.3], 10, 0.0) == [2, 7, 1, 0]
    assert allocate([2, 1, 0], [0.0, 0.0, 1.0], 5, 0.5) == [2, 1, 0]


def test_small_shares_get_their_turn():
    """A pool that wants 0.3 of a batch's prompts is in three of ten batches."""
    found = [allocate([99, 99], [0.1, 0.9], 3, take * 0.618034 % 1)[0] for take in range(100)]
    assert sum(found) == 30 and set(found) == {0, 1}


def brute_force(left: list[int], target: list[Fraction], places: int, offset: Fraction) -> list[int]:
    """One pointer per place along the pools, each as long as its share; then every way to place the leftovers, of which
    the best leaves pools of the most equal sizes."""
    ends = [sum(target[: pool + 1]) * places for pool in range(len(target))]
    pointers = [place - offset for place in range(1, places + 1)]
    quota = [0] * len(left)
    for pointer in pointers:
        quota[next(pool for pool, end in enumerate(ends) if pointer <= end)] += 1
    quota = [min(a, b) for a, b in zip(quota, left, strict=True)]
    spare = [have - asked for have, asked in zip(left, quota, strict=True)]
    free = min(places, sum(left)) - sum(quota)
    ways = [way for way in itertools.product(*(range(s + 1) for s in spare)) if sum(way) == free]

    def unequal(way):
        rest = [s - w for s, w in zip(spare, way, strict=True)]
        return sum(r * r for r in rest), rest[::-1]

    return [a + b for a, b in zip(quota, min(ways, key=unequal), strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_an_allocation_is_that_of_brute_force(seed):
    random = np.random.default_rng(seed)
    left = random.integers(0, 9, 4).tolist()
    parts = random.integers(1, 20, 4).tolist()
    target = [Fraction(part, sum(parts)) for part in parts]
    places, offset = int(random.integers(1, 14)), Fraction(int(random.integers(0, 97)), 97)
    found = allocate(left, [float(share) for share in target], places, float(offset))
    assert found == brute_force(left, target, places, offset)


def test_a_whole_run_is_that_of_brute_force():
    pools, level = [6, 0, 9, 0, 4, 7, 0, 0, 3], None
    level = [row["pass_rate"] for row in rows(pools)]
    order, unused = curriculum(pools, 7), set(range(sum(pools)))
    for take in range(7):
        batch = order.take(4)
        left = [sum(level[index] == rate for index in unused) for rate in order.rates]
        target = [Fraction(share).limit_denominator(10**12) for share in order.target(take)]
        target[-1] += 1 - sum(target)
        wanted = brute_force(left, target, 4, Fraction((take + 1) * (math.sqrt(5) - 1) / 2 % 1))
        assert [sum(level[index] == rate for index in batch) for rate in order.rates] == wanted
        assert unused >= set(batch)
        unused -= set(batch)


def test_with_plenty_of_prompts_the_target_is_a_gaussian():
    rates = [0.0, 0.25, 0.5, 1.0]
    centres = np.array([1.0, 0.6, 0.0])
    found = rationed(rates, centres, 0.2, np.full(4, 100.0))
    for row, centre in zip(found, centres, strict=True):
        density = [NormalDist(centre, 0.2).pdf(rate) for rate in rates]
        assert row == pytest.approx([value / sum(density) for value in density])


@pytest.mark.parametrize("seed", range(20))
def test_rationing_keeps_within_the_stock_and_weighs_rates_alike_in_every_rollout(seed):
    random = np.random.default_rng(seed)
    rates, rollouts = sorted(random.choice(9, 6, replace=False) / 8), 25
    stock = random.dirichlet(np.ones(6)) * rollouts * 1.05
    centres = np.linspace(rates[-1], rates[0], rollouts)
    found = rationed(rates, centres, 0.2, stock)
    assert found.sum(1) == pytest.approx(np.ones(rollouts))
    assert (found.sum(0) <= stock * 1.001).all()
    gaussian = np.exp(-((np.array(rates) - centres[:, None]) ** 2) / 0.08)
    weights = found / gaussian
    assert weights / weights.max(1, keepdims=True) == pytest.approx(
        np.broadcast_to(weights[0] / weights[0].max(), weights.shape)
    )


def test_prompts_without_a_pass_rate_are_refused():
    for bad in ({}, {"pass_rate": None}, {"pass_rate": 1.5}, {"pass_rate": "0.5"}, {"pass_rate": math.nan}):
        with pytest.raises(UserError, match=r"number 2 has .*lnlit rollout annotate"):
            GaussianCurriculum().start([{"pass_rate": 0.5}, bad], 0, 3)


@pytest.mark.parametrize(
    "settings", [{"sigma": 0.0}, {"sigma": math.nan}, {"levels": 0}, {"easiest": 1.2}, {"easiest": 0.1}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError, match="GaussianCurriculum"):
        GaussianCurriculum(**settings).start([{"pass_rate": 0.5}], 0, 3)


def test_a_run_without_an_end_or_prompts_is_refused():
    with pytest.raises(UserError, match="how many rollouts"):
        curriculum([3], 0)
    with pytest.raises(UserError, match="no usable rows"):
        curriculum([], 3)
