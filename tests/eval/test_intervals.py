"""Intervals of paired differences, against scipy and against plain loops."""

from __future__ import annotations

import itertools
import random
from statistics import fmean

import numpy as np
import pytest

from lnlit.eval.intervals import FEW, bootstrap_interval, estimate, t_interval, t_probability, t_quantile

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 18, 101])
def test_students_distribution_is_scipys(degrees):
    for value in (0.0, 0.3, 1.7, 12.0):
        assert t_probability(value, degrees) == pytest.approx(stats.t.cdf(value, degrees), abs=1e-12)
    for probability in (0.5, 0.8, 0.975, 0.999):
        assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5, 19])
def test_the_t_interval_is_that_of_the_paired_test(count):
    rng = np.random.default_rng(count)
    one, other = rng.normal(1, 1, count), rng.normal(1.5, 1, count)
    found = estimate(list(other - one), "seeds")
    oracle = stats.ttest_rel(other, one).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)
    assert found.method == "t" and found.pairs == count and found.mean == pytest.approx(fmean(other) - fmean(one))


def test_the_bootstrap_interval_is_that_of_all_resamples():
    """Of five numbers there are 3125 resamples, which a loop can go through."""
    values = [0.0, 1.0, 4.0, 4.5, 9.0]
    means = sorted(fmean(chosen) for chosen in itertools.product(values, repeat=5))
    low, high = bootstrap_interval(np.array(values))
    below = sum(mean <= low for mean in means) / len(means)
    above = sum(mean >= high for mean in means) / len(means)
    assert 0.018 < below < 0.034 and 0.018 < above < 0.034


def test_the_bootstrap_interval_is_scipys():
    rng = np.random.default_rng(3)
    values = rng.binomial(1, 0.7, 200) - rng.binomial(1, 0.6, 200).astype(float)
    oracle = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=rng).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((oracle.low, oracle.high), abs=0.006)  # their noise
    assert bootstrap_interval(values) == bootstrap_interval(values)


@pytest.mark.parametrize(("count", "least"), [(3, 0.93), (60, 0.92)])
def test_an_interval_covers_the_truth_as_often_as_it_says(count, least, record_property):
    """Of differences between two arms that share their seed's luck, which is larger than what is looked for."""
    rng, hits, trials = random.Random(count), 0, 400
    for _ in range(trials):
        luck = [rng.gauss(0, 5) for _ in range(count)]
        differences = [(rng.gauss(0.5, 1) + of) - (rng.gauss(0, 1) + of) for of in luck]
        found = estimate(differences, "seeds")
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.5 <= found.high
    record_property("coverage", hits / trials)
    assert least <= hits / trials <= 0.985


def test_what_says_nothing_has_no_interval():
    one = estimate([0.25], "seeds")
    assert (one.method, one.low, one.mean, one.why_none) == ("none", None, 0.25, "one of seeds says nothing of others")
    for differences in ([0.0] * 40, [0.1] * 3):
        same = estimate(differences, "questions")
        assert same.low is None and same.why_none == f"all {len(differences)} questions differ by the same"
    assert estimate([0.0] * FEW + [1.0], "questions").method == "bootstrap"


def test_numpys_own_t_interval_agrees_with_the_hand():
    assert t_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(
        (2 - 4.302652729911275 / 3**0.5, 2 + 4.302652729911275 / 3**0.5)
    )
