"""Confidence intervals over questions or seeds, of means and of paired differences.

In a pair, both sides have the same seeds or questions, so that what makes one easy or hard for both cancels. An
interval over seeds predicts another training run, and one over questions predicts other questions of the same kind;
neither replaces the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

#: The weight of a wholly right and of a wholly wrong question that are added when the variance between questions is
#: estimated. A few questions that happen to be equally good would otherwise promise that all are.
_UNSEEN = 0.05


@dataclass(frozen=True)
class Mean:
    """The mean over `questions` of values that are means over each question's samples, with its 95% interval. `low` and
    `high` are None if the questions say nothing of others, and `value` is NaN if there is none. `is_share` is true for
    shares and their differences, which are shown as percentages."""

    value: float
    low: float | None
    high: float | None
    questions: int
    is_share: bool = False

    @property
    def is_more_than_chance(self) -> bool:
        """True for a difference whose interval is without 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        if not self.questions:
            return "-"
        between = "" if self.low is None or self.high is None else f" ({self.low:.0%}-{self.high:.0%})"
        return f"{self.value:.1%}{between}"


def share(hits: int, total: int) -> Mean:
    """The share of `hits` among `total` questions with one sample each."""
    return mean_of_shares([1.0] * hits + [0.0] * (total - hits), total)


def mean_of_shares(values: Sequence[float], samples: int) -> Mean:
    """The mean of values from 0 to 1 of one question each, with an interval that is also right near 0 and 1.

    Samples of one question are no independent trials, so it is Wilson's interval with an effective number of trials:
    as many as would make the mean vary as much as it does between questions. If all values are 0 or all are 1, the
    bound is what 95% of such results stay above or below (the "rule of three").

    Args:
        values: The mean of each question's samples.
        samples: The number of samples behind them in all.
    """
    found, count = np.asarray(values, dtype=np.float64), len(values)
    if count < 2:
        return Mean(float(found.mean()) if count else math.nan, None, None, count, is_share=True)
    mean, trials = float(found.mean()), _trials(found, samples)
    if mean in (0.0, 1.0):
        beyond = 1 - 0.05 ** (1 / trials)
        return Mean(mean, 0.0 if mean == 0 else 1 - beyond, beyond if mean == 0 else 1.0, count, is_share=True)
    return Mean(mean, *_wilson(mean, trials, count), count, is_share=True)


def share_left_out(value: float, without: Sequence[float]) -> Mean:
    """A share of something that questions have in different numbers, such as instructions, with an interval that is
    also right near 0 and 1.

    It is Wilson's interval with as many trials as would make the share vary as much as it does between questions, which
    the jackknife tells.

    Args:
        value: The share.
        without: What the share would be without each of the questions.
    """
    count = len(without)
    if count < 2:
        return Mean(value, None, None, count, is_share=True)
    pseudo = count * value - (count - 1) * np.asarray(without, dtype=np.float64)
    trials = _trials_of(pseudo)
    if value in (0.0, 1.0):
        beyond = 1 - 0.05 ** (1 / min(trials, count))
        return Mean(value, 0.0 if value == 0 else 1 - beyond, beyond if value == 0 else 1.0, count, is_share=True)
    return Mean(value, *_wilson(value, trials, count), count, is_share=True)


def _wilson(mean: float, trials: float, count: int) -> tuple[float, float]:
    """Wilson's interval, with Student's quantile for the number of questions."""
    t = t_quantile(0.975, count - 1)
    centre = (mean + t * t / (2 * trials)) / (1 + t * t / trials)
    half = t * math.sqrt(mean * (1 - mean) / trials + t * t / (4 * trials * trials)) / (1 + t * t / trials)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _trials(values: np.ndarray, samples: int) -> float:
    """The number of independent trials whose mean would vary as much as that of the values."""
    count = len(values)
    if samples <= count:
        return count
    return min(max(_trials_of(values), count - 1), samples)


def _trials_of(values: np.ndarray) -> float:
    """The same, without bounds."""
    padded = len(values) + 2 * _UNSEEN
    mean = (float(values.sum()) + _UNSEEN) / padded
    squares = float(((values - mean) ** 2).sum()) + _UNSEEN * ((1 - mean) ** 2 + mean**2)
    variance = squares / (padded - 1) / padded
    return mean * (1 - mean) / variance


def mean_of_numbers(values: Sequence[float]) -> Mean:
    """The mean of any numbers of one question each, with Student's interval. Equal numbers have none, because they do
    not show that the next would be equal."""
    found, count = np.asarray(values, dtype=np.float64), len(values)
    if count < 2 or _are_equal(found):
        return Mean(float(found.mean()) if count else math.nan, None, None, count)
    return Mean(float(found.mean()), *t_interval(found), count)


def mean_difference(differences: Sequence[float]) -> Mean:
    """The mean of paired differences of shares, one for each question, with Student's interval as far as it is
    within -1 and 1.

    If all are the same, as between a model and its copy, the interval is what questions that were not asked could
    change, with 95% confidence that they are no more of all than that.
    """
    values, count = np.asarray(differences, dtype=np.float64), len(differences)
    if count < 2 or not _are_equal(values):
        found = replace(mean_of_numbers(differences), is_share=True)
        if found.low is None or found.high is None:
            return found
        return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))
    same, unseen = float(values[0]), 1 - 0.05 ** (1 / count)
    return Mean(same, same * (1 - unseen) - unseen, same * (1 - unseen) + unseen, count, is_share=True)


def _are_equal(values: np.ndarray) -> bool:
    """True for numbers that differ by rounding at most."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of two or more numbers."""
    count, mean = len(values), float(values.mean())
    half = t_quantile(0.5 + level / 2, count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """The value at which Student's distribution with `degrees` degrees of freedom reaches `probability`, which is 0.5
    or more."""
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def t_probability(value: float, degrees: int) -> float:
    """P(T <= value) for a value of 0 or more, by the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(value / math.sqrt(degrees))
    odd = degrees % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(3 if odd else 2, degrees, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    inside = math.sin(angle) * total if degrees > 1 else 0.0
    within = 2 / math.pi * (angle + inside) if odd else inside
    return 0.5 + within / 2
