"""Evaluations of questions of known difficulty, many times over: how often does an interval hold the truth?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb

import numpy as np

from lnlit.eval.intervals import Mean, mean_difference, mean_of_shares

#: How difficult the questions of a benchmark may be: name -> a function of (random numbers, mean, questions).
SHAPES: dict[str, Callable[[np.random.Generator, float, int], np.ndarray]] = {
    "spread": lambda rng, mean, count: rng.beta(2 * mean, 2 * (1 - mean), count),
    "mostly easy or hard": lambda rng, mean, count: rng.beta(mean, 1 - mean, count),
    "mostly all or none": lambda rng, mean, count: rng.beta(0.5 * mean, 0.5 * (1 - mean), count),
    "similar": lambda rng, mean, count: rng.beta(10 * mean, 10 * (1 - mean), count),
    "all or none": lambda rng, mean, count: (rng.random(count) < mean).astype(float),
}


def drawn(rng: np.random.Generator, shape: str, mean: float, questions: int, samples: int) -> np.ndarray:
    """The mean of each question's samples."""
    return rng.binomial(samples, SHAPES[shape](rng, mean, questions)) / samples


def holds(found: Mean, truth: float) -> bool:
    assert found.low is not None and found.high is not None
    return found.low <= truth <= found.high


def coverage(shape: str, mean: float, questions: int, samples: int, trials: int, seed: int = 0) -> float:
    """The share of simulated evaluations whose interval holds the mean over all questions that could be asked."""
    rng = np.random.default_rng(seed)
    found = (drawn(rng, shape, mean, questions, samples) for _ in range(trials))
    return sum(holds(mean_of_shares(list(each), questions * samples), mean) for each in found) / trials


def exact_coverage(mean: float, questions: int) -> float:
    """What `coverage` tends to with one sample per question, whatever the shape."""
    chances = (
        comb(questions, right) * mean**right * (1 - mean) ** (questions - right) for right in range(questions + 1)
    )
    results = ([1.0] * right + [0.0] * (questions - right) for right in range(questions + 1))
    return sum(
        chance
        for chance, values in zip(chances, results, strict=True)
        if holds(mean_of_shares(values, questions), mean)
    )


def pairs(
    rng: np.random.Generator, shape: str, mean: float, loss: float, questions: int, samples: int
) -> Iterator[np.ndarray]:
    """The results of a parent and of a child that is worse by `loss` and finds the same questions difficult."""
    difficulty = SHAPES[shape](rng, mean, questions)
    for chance in (difficulty, difficulty * (1 - loss / mean)):
        yield rng.binomial(samples, chance) / samples


def paired(
    shape: str, mean: float, loss: float, questions: int, samples: int, trials: int, seed: int = 0
) -> tuple[float, float]:
    """(coverage of the interval of paired differences, its mean width as a share of that of two unpaired means)."""
    rng, hits, ratios = np.random.default_rng(seed), 0, []
    for _ in range(trials):
        parent, child = pairs(rng, shape, mean, loss, questions, samples)
        found = mean_difference(list(child - parent))
        hits += holds(found, -loss)
        assert found.low is not None and found.high is not None
        one, other = (mean_of_shares(list(side), questions * samples) for side in (parent, child))
        widths = [(side.high or 0) - (side.low or 0) for side in (one, other)]
        ratios.append((found.high - found.low) / float(np.hypot(*widths)))
    return hits / trials, float(np.mean(ratios))
