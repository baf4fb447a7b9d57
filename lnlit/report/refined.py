"""The picture of a search by whole children: their ranks by sums of scores and by what they realise, and the rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from lnlit.report.picture import tips
from lnlit.report.theme import Theme, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Measured:
    """A child by name, the sum of its scores, and what it realises on the text that the search looks at and on another
    one. `is_plain`: one of many that need no label."""

    name: str
    score: float
    realised: float
    held_out: float | None = None
    is_plain: bool = False


def kendall(pairs: Sequence[tuple[float, float]]) -> float:
    """Kendall's tau-b of two rankings: 1 where both agree, -1 where one is the other's reverse. NaN if all values of
    one are equal."""
    agree = first = second = 0
    for (a, b), (c, d) in combinations(pairs, 2):
        x, y = (a > c) - (a < c), (b > d) - (b < d)
        agree, first, second = agree + x * y, first + abs(x), second + abs(y)
    return agree / math.sqrt(first * second) if first and second else math.nan


def refined_chart(theme: Theme, children: Sequence[Measured], path: Sequence[Measured]) -> Figure:
    """Left: each child's rank by the sum of its scores, joined with its rank by what it realises; best on top. Right:
    what is realised after each round, from the best child before."""
    figure = new_figure(11, 5.2)
    left, right = figure.subplots(1, 2)
    _ranks(theme, left, children)
    _rounds(theme, right, path)
    return figure


def _ranks(theme: Theme, axis: Axes, children: Sequence[Measured]) -> None:
    before = _places([child.score for child in children])
    after = _places([child.realised for child in children])
    for child, start, end in zip(children, before, after, strict=True):
        colour = theme.muted if child.is_plain else theme.accents[0]
        said = f"{child.name}: sum {plain(child.score)}, realised {plain(child.realised)}"
        width, alpha = (0.8, 0.5) if child.is_plain else (1.8, 1.0)
        axis.plot([0, 1], [start, end], color=colour, lw=width, alpha=alpha)
        axis.plot([0, 1], [start, end], "o", color=colour, ms=4, ls="", gid=tips([said, said]))
        if not child.is_plain:
            axis.annotate(child.name, (0, start), (-6, 0), textcoords="offset points", ha="right", va="center")
            axis.annotate(plain(child.realised), (1, end), (6, 0), textcoords="offset points", va="center")
    axis.invert_yaxis()
    axis.set(xlim=(-0.45, 1.25), xticks=[0, 1], xticklabels=["by sum of scores", "by realised KL"], ylabel="rank")
    tau = kendall([(child.score, child.realised) for child in children])
    axis.set_title(f"{len(children)} children, Kendall's tau {tau:.2f}")


def _rounds(theme: Theme, axis: Axes, path: Sequence[Measured]) -> None:
    numbers = range(len(path))
    said = [f"round {number}: {plain(child.realised)}" for number, child in zip(numbers, path, strict=True)]
    values = [child.realised for child in path]
    axis.plot(numbers, values, color=theme.accents[0], lw=1.8, label="text that the search looks at")
    axis.plot(numbers, values, "o", color=theme.accents[0], ls="", gid=tips(said))
    held_out = [child.held_out for child in path if child.held_out is not None]
    if held_out:
        axis.plot(numbers, held_out, "o--", color=theme.accents[1], lw=1.4, label="held-out text")
    axis.set(xlabel="round", ylabel="KL to the parent, nats per token", xticks=list(numbers))
    axis.set_ylim(bottom=0)
    axis.set_title("what a whole child realises")
    axis.grid()
    axis.legend(loc="lower left")


def _places(values: Sequence[float]) -> list[int]:
    """The rank of each value from 1, the lowest."""
    order = sorted(range(len(values)), key=values.__getitem__)
    places = [0] * len(values)
    for place, index in enumerate(order, start=1):
        places[index] = place
    return places
