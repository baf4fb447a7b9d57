"""Confidence intervals of a mean of paired differences: Student's t for few of them, the bootstrap for many.

Both sides have the same seeds or questions, so that what makes one easy or hard for both cancels. An interval over
seeds predicts another training run, and one over questions predicts other questions of the same kind; neither replaces
the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: With fewer pairs, resampling has too low coverage, and the t interval is used.
FEW = 20
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """The mean of `pairs` differences and its 95% interval, computed by `method`. Without an interval, `low` and `high`
    are None and `why_none` gives the reason."""

    mean: float
    pairs: int
    method: Literal["t", "bootstrap", "none"]
    low: float | None = None
    high: float | None = None
    why_none: str = ""


def estimate(differences: Sequence[float], of: str) -> Estimate:
    """The mean of one or more finite differences with its interval. `of` names what they are over, e.g. "seeds".

    A single difference has no interval. Equal differences have none either, because they do not show that the next
    would be equal.
    """
    values, count = np.asarray(differences, dtype=np.float64), len(differences)
    mean = float(values.mean())
    if count == 1:
        return Estimate(mean, count, "none", why_none=f"one of {of} says nothing of others")
    if np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0.0):
        return Estimate(mean, count, "none", why_none=f"all {count} {of} differ by the same")
    low, high = t_interval(values) if count < FEW else bootstrap_interval(values)
    return Estimate(mean, count, "t" if count < FEW else "bootstrap", low, high)


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of two or more numbers."""
    count, mean = len(values), float(values.mean())
    half = t_quantile(0.5 + level / 2, count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


def bootstrap_interval(values: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the mean, from many resamples of `values` with replacement. Equal values give equal
    intervals."""
    rng, count = np.random.default_rng(seed), len(values)
    at_once = max(1, 2_000_000 // count)
    means = [
        values[rng.integers(count, size=(min(at_once, _RESAMPLES - done), count))].mean(axis=1)
        for done in range(0, _RESAMPLES, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


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
