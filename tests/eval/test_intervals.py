"""Intervals of paired differences, against scipy and against plain loops."""

from __future__ import annotations

import itertools
import random
from statistics import fmean

import numpy as np
import pytest
from simulated import coverage, exact_coverage, paired

from lnlit.eval.intervals import (
    mean_difference,
    mean_of_numbers,
    mean_of_shares,
    share,
    share_left_out,
    t_interval,
    t_probability,
    t_quantile,
)

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 18, 101])
def test_students_distribution_is_scipys(degrees):
    for value in (0.0, 0.3, 1.7, 12.0):
        assert t_probability(value, degrees) == pytest.approx(stats.t.cdf(value, degrees), abs=1e-12)
    for probability in (0.5, 0.8, 0.975, 0.999):
        assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5, 19, 100])
def test_the_t_interval_is_that_of_the_paired_test(count):
    rng = np.random.default_rng(count)
    one, other = rng.normal(1, 1, count), rng.normal(1.5, 1, count)
    found = mean_of_numbers(list(other - one))
    oracle = stats.ttest_rel(other, one).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)
    assert found.questions == count and found.value == pytest.approx(fmean(other) - fmean(one))


@pytest.mark.parametrize(("count", "least"), [(3, 0.93), (60, 0.92)])
def test_an_interval_covers_the_truth_as_often_as_it_says(count, least, record_property):
    """Of differences between two arms that share their seed's luck, which is larger than what is looked for."""
    rng, hits, trials = random.Random(count), 0, 400
    for _ in range(trials):
        luck = [rng.gauss(0, 5) for _ in range(count)]
        differences = [(rng.gauss(0.5, 1) + of) - (rng.gauss(0, 1) + of) for of in luck]
        found = mean_of_numbers(differences)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.5 <= found.high
    record_property("coverage", hits / trials)
    assert least <= hits / trials <= 0.985


def test_what_says_nothing_has_no_interval():
    for values in ([0.25], [0.0] * 40, [0.1] * 3):
        found = mean_of_numbers(values)
        assert (found.value, found.low, found.high) == (pytest.approx(values[0]), None, None)


def test_numpys_own_t_interval_agrees_with_the_hand():
    assert t_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(
        (2 - 4.302652729911275 / 3**0.5, 2 + 4.302652729911275 / 3**0.5)
    )


@pytest.mark.parametrize(("questions", "samples"), itertools.product((30, 200), (1, 16)))
def test_the_interval_of_a_benchmark_is_true(questions, samples, record_property):
    """1000 evaluations tell a coverage to within 2 points; `bench_intervals.py` makes 4000."""
    for mean, shape in itertools.product((0.1, 0.5, 0.95), ("spread", "mostly all or none")):
        found = coverage(shape, mean, questions, samples, 1000)
        record_property("coverage", found)
        assert 0.91 <= found <= 0.985, (mean, shape)


def test_with_one_sample_the_coverage_is_known_exactly():
    for mean, questions in itertools.product((0.1, 0.5, 0.95), (30, 200)):
        assert 0.93 <= exact_coverage(mean, questions) <= 0.97, (mean, questions)


def test_samples_of_one_question_are_no_trials_of_their_own():
    """All samples of a question agree: more of them say nothing more. All questions are alike: each says more."""
    agreeing = [1.0] * 10 + [0.0] * 10
    one, sixteen = mean_of_shares(agreeing, 20), mean_of_shares(agreeing, 20 * 16)
    assert (sixteen.low, sixteen.high) == pytest.approx((one.low, one.high), abs=0.01)
    alike = mean_of_shares([0.5] * 20, 20 * 16)
    assert alike.high - alike.low < 0.4 * (one.high - one.low)


def test_wilson_interval_of_known_values():
    """Wilson 1927, n = 10, x = 8, with 1.96; ours has Student's 2.262 in its place, since the variance is estimated."""
    found, z, n, p = share(8, 10), 2.262157, 10, 0.8
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (found.low, found.high) == pytest.approx([(centre + s * half) / (1 + z * z / n) for s in (-1, 1)], abs=1e-6)
    assert str(found) == "80.0% (44%-95%)"


def test_all_right_and_all_wrong_have_a_bound():
    assert share(0, 40).low == 0 and share(0, 40).high == pytest.approx(1 - 0.05 ** (1 / 40)) == 1 - share(40, 40).low
    assert share(40, 40).high == 1
    assert (share(1, 1).low, share(1, 1).high) == (None, None) and str(share(0, 0)) == "-"


def test_pairs_tell_more_than_two_evaluations(record_property):
    covered, width = paired("mostly easy or hard", 0.6, 0.05, 200, 4, 400)
    record_property("width of paired", width)
    assert 0.92 <= covered <= 0.98 and width <= 0.55


def test_no_difference_is_no_proof_of_none():
    same = mean_difference([0.0] * 200)
    assert (same.value, same.low, same.high) == (0, pytest.approx(-0.0149, abs=1e-4), pytest.approx(0.0149, abs=1e-4))
    worse = mean_difference([-1.0] * 10)
    assert worse.low == -1 and -1 < worse.high < 0


@pytest.mark.parametrize(("questions", "mean"), [(30, 0.1), (30, 0.5), (30, 0.95), (200, 0.1), (200, 0.5), (200, 0.95)])
def test_the_share_of_parts_that_questions_have_in_different_numbers(questions, mean):
    """Of one to three instructions each, where those of a prompt are obeyed alike."""
    rng, hits, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        parts = rng.choice([1, 2, 3], questions, p=[0.56, 0.33, 0.11])
        obeyed = rng.binomial(parts, rng.beta(2 * mean, 2 * (1 - mean), questions))
        value = obeyed.sum() / parts.sum()
        found = share_left_out(value, (obeyed.sum() - obeyed) / (parts.sum() - parts))
        assert found.low is not None and found.high is not None and 0 <= found.low <= value <= found.high <= 1
        hits += found.low <= mean <= found.high
    assert 0.93 <= hits / trials <= 0.98


def test_a_share_of_equal_parts_is_a_mean():
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    value = sum(values) / 10
    found = share_left_out(value, [(sum(values) - each) / 9 for each in values])
    mean = mean_of_shares(values, 10)
    assert found.value == mean.value and mean.low is not None and mean.high is not None
    assert found.low == pytest.approx(mean.low, abs=0.02) and found.high == pytest.approx(mean.high, abs=0.02)
    assert share_left_out(1.0, [1.0] * 10).high == 1 and share_left_out(0.3, [0.2]).low is None


def test_a_difference_of_shares_is_no_more_than_one():
    """Student's interval of two questions that differ is seven times as wide as what is possible."""
    found = mean_difference([0.0, 1.0])
    assert (found.value, found.low, found.high) == (0.5, -1.0, 1.0)
    many = [0.1 * number for number in range(5)]
    assert (mean_difference(many).low, mean_difference(many).high) == t_interval(np.array(many))
