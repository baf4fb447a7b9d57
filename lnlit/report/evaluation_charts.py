"""Charts of evaluations: accuracy against cost, and differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnlit.eval.intervals import Mean
from lnlit.report.picture import tips
from lnlit.report.theme import Theme, new_figure, plain
from lnlit.thinking import Thinking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Spot:
    """One model in one thinking mode on one task: its number, and what an answer costs, by the name of the cost."""

    model: str
    thinking: Thinking | None
    mean: Mean
    costs: Mapping[str, float]


def cost_chart(theme: Theme, tasks: Mapping[str, Sequence[Spot]], models: Sequence[str]) -> Figure:
    """A row for each task and a column for each cost. Models have colours; thinking off is an open mark."""
    costs = list(dict.fromkeys(cost for spots in tasks.values() for spot in spots for cost in spot.costs))
    figure = new_figure(9.2, 0.7 + 2.9 * len(tasks))
    axes = figure.subplots(len(tasks), len(costs), squeeze=False, sharey="row")
    for row, (task, spots) in zip(axes, tasks.items(), strict=True):
        for axis, cost in zip(row, costs, strict=True):
            for number, model in enumerate(models):
                mine = [spot for spot in spots if spot.model == model and not math.isnan(spot.costs[cost])]
                _model(axis, mine, cost, theme, theme.accents[number % len(theme.accents)])
            axis.set(xlabel=cost)
            axis.set_xlim(left=0)
            axis.xaxis.set_major_formatter(plain)
            axis.grid()
        is_share = all(spot.mean.is_share for spot in spots)
        row[0].yaxis.set_major_formatter((lambda value, _: f"{100 * value:.0f} %") if is_share else plain)
        if is_share:
            row[0].set_ylim(-0.03, min(1.03, 1.15 * max(spot.mean.high or spot.mean.value for spot in spots) + 0.03))
        row[0].set_title(task)
    _legend(figure, axes[0][0], models, {spot.thinking for spots in tasks.values() for spot in spots}, theme)
    return figure


def _model(axis: Axes, spots: Sequence[Spot], cost: str, theme: Theme, colour: str) -> None:
    places = [(spot.costs[cost], spot.mean.value) for spot in spots]
    if len(places) > 1:
        axis.plot(*zip(*places, strict=True), color=colour, lw=1.1, alpha=0.6)
    for spot, (x, y) in zip(spots, places, strict=True):
        if spot.mean.low is not None and spot.mean.high is not None:
            axis.plot([x, x], [spot.mean.low, spot.mean.high], color=colour, lw=2.4, alpha=0.35)
        face = theme.page if spot.thinking == "off" else colour
        mode = f", thinking {spot.thinking}" if spot.thinking else ""
        said = f"{spot.model}{mode}: {plain(y)} at {plain(x)} {cost}"
        axis.plot(x, y, "o", ms=7, mfc=face, mec=colour, mew=1.8, zorder=3, gid=tips([said]))


def _legend(figure: Figure, axis: Axes, models: Sequence[str], modes: set[Thinking | None], theme: Theme) -> None:
    handles: list[Any] = []
    for number, model in enumerate(models):
        handles += axis.plot([], [], "o", color=theme.accents[number % len(theme.accents)], label=f" {model}".rstrip())
    if modes >= {"off", "on"}:
        handles += axis.plot([], [], "o", mfc=theme.page, mec=theme.muted, mew=1.8, label="thinking off")
        handles += axis.plot([], [], "o", color=theme.muted, label="thinking on")
    figure.legend(handles=handles, loc="outside lower left", ncols=min(len(handles), 5))


def flip_chart(theme: Theme, rows: Sequence[tuple[str, Mean]]) -> Figure:
    """Differences with their intervals, one in a row. Those that are more than chance are filled."""
    figure = new_figure(9.2, 1.0 + 0.38 * len(rows))
    axis = figure.subplots()
    axis.axvline(0, color=theme.muted, lw=1)
    for at, (name, mean) in enumerate(rows):
        low, high, is_sure = mean.low, mean.high, mean.is_more_than_chance
        colour = theme.accents[1 if mean.value < 0 else 2] if is_sure else theme.muted
        if low is not None and high is not None:
            axis.plot([100 * low, 100 * high], [at, at], color=colour, lw=3, alpha=0.5)
        said = f"{name}: {100 * mean.value:+.1f}"
        axis.plot(
            100 * mean.value, at, "o", ms=6.5, mfc=colour if is_sure else theme.page, mec=colour, gid=tips([said])
        )
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel="points")
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    return figure
