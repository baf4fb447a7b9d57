"""The front of two tasks: models between two, with their intervals, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lnlit.eval.intervals import Mean
from lnlit.report.picture import tips
from lnlit.report.theme import Theme, new_figure, percent, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """A model between two with its results in two tasks. `weight` is the share of the second model."""

    weight: float
    means: tuple[Mean, Mean]
    on_front: bool
    is_picked: bool = False


def front_chart(theme: Theme, points: Sequence[Point], tasks: tuple[str, str]) -> Figure:
    """Every model with its intervals in both tasks, the front as a line, and a ring around the one that was picked."""
    figure = new_figure(7.2, 5.2)
    axis = figure.subplots()
    for point in points:
        colour = theme.accents[0] if point.on_front else theme.muted
        x, y = point.means
        if x.low is not None and x.high is not None:
            axis.plot([x.low, x.high], [y.value, y.value], color=colour, lw=1.2, alpha=0.35)
        if y.low is not None and y.high is not None:
            axis.plot([x.value, x.value], [y.low, y.high], color=colour, lw=1.2, alpha=0.35)
        said = f"weight {plain(point.weight)}: {tasks[0]} {x}, {tasks[1]} {y}"
        axis.plot(x.value, y.value, "o", ms=6.5, color=colour, zorder=3, gid=tips([said]))
        here = [plain(each.weight) for each in points if each.means == point.means]
        if here[0] == plain(point.weight):  # once for all that are in one place
            text = ", ".join(here)
            axis.annotate(text, (x.value, y.value), (6, 5), textcoords="offset points", color=theme.ink)
        if point.is_picked:
            axis.plot(x.value, y.value, "o", ms=13, mfc="none", mec=theme.accents[1], mew=2, label="picked")
    best = sorted((each for each in points if each.on_front), key=lambda each: each.means[0].value)
    line = [(each.means[0].value, each.means[1].value) for each in best]
    axis.plot(*zip(*line, strict=True), color=theme.accents[0], lw=1.4, label="no other beats these in both")
    axis.set(xlabel=tasks[0], ylabel=tasks[1])
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(percent)
    axis.grid()
    figure.legend(loc="outside lower left", ncols=2)
    return figure
