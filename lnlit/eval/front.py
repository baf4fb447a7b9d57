"""Models between two, judged by two tasks: which of them no other beats in both, and which one to take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

#: The values of one model in two tasks, of which more is better.
Values = tuple[float, float]
Rule = Literal["balanced", "mean"]


def front(values: Sequence[Values]) -> list[int]:
    """The places of the models that no other beats: none is as good in both tasks and better in one."""
    return [place for place, mine in enumerate(values) if not any(_beats(other, mine) for other in values)]


def pick(values: Sequence[Values], rule: Rule) -> int:
    """The place of the model on the front that a rule prefers; of equal ones the first.

    "balanced" takes the one whose worse task is best, each measured from 0, the worst value of any model in that task,
    to 1, the best. "mean" takes the highest mean of both values.
    """
    worst, best = (tuple(f(each[task] for each in values) for task in (0, 1)) for f in (min, max))
    span = [high - low or 1.0 for low, high in zip(worst, best, strict=True)]

    def preferred(place: int) -> tuple[float, float]:
        one, two = values[place]
        balance = min((one - worst[0]) / span[0], (two - worst[1]) / span[1])
        return (balance, one + two) if rule == "balanced" else (one + two, balance)

    return max(front(values), key=preferred)


def beats_both(values: Values, ends: Sequence[Values]) -> bool:
    """True if a model is better than each of both ends in each task."""
    return all(mine > theirs for end in ends for mine, theirs in zip(values, end, strict=True))


def _beats(other: Values, mine: Values) -> bool:
    return other[0] >= mine[0] and other[1] >= mine[1] and other != mine
