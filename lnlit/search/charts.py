"""Charts of a search: quality against cost, predicted against measured cost, budgets used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lnlit.search.figures import Theme, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Unit of a cost by the ending of its name.
_UNITS = {
    "_mib": "MiB",
    "_gib": "GiB",
    "_bytes": "bytes",
    "_ms": "ms",
    "_s": "s",
    "_tokens": "tokens",
    "throughput": "tokens/s",
}


def cost_label(cost: str) -> str:
    """Name and unit, as "memory, MiB"; of one workload ("latency_s @ 8x256+64"), as "latency @ 8x256+64, s"."""
    name, at, workload = cost.partition(" @ ")
    ending = next((ending for ending in _UNITS if name.endswith(ending)), "")
    said = name.removesuffix(ending if name != "throughput" else "").replace("_", " ")
    unit = f", {_UNITS[ending]}" if ending else ""
    return f"{said}{at}{workload}{unit}"


@dataclass(frozen=True)
class Point:
    """One architecture: what it costs and how it scores. `bound`: the solver's proof of how well any could score."""

    cost: float
    score: float
    bound: float | None = None


@dataclass(frozen=True)
class Frontier:
    """Ways to choose, the best and `others`, each with its architectures, on the axes `cost` and score.

    `is_sweep`: each way was tried at many limits on `cost`, so its points belong on a line. `side`: "max" where the
    limits are highest costs allowed, "min" where they are lowest.
    """

    cost: str
    best: Sequence[Point]
    others: Mapping[str, Sequence[Point]]
    is_sweep: bool
    best_name: str = "optimum"
    side: str = "max"
    parent_cost: float | None = None
    lower_is_better: bool = True


def frontier_chart(theme: Theme, data: Frontier) -> Figure:
    """Score against cost: the best way, what its proof rules out, the others, the parent's cost."""
    figure = new_figure(9, 5.2)
    axis = figure.subplots()
    scores = [point.score for points in (data.best, *data.others.values()) for point in points]
    if min(scores, default=0) > 0 and max(scores) > 12 * min(scores):
        axis.set_yscale("log")
    _series(axis, data.best, data.best_name, theme.accents[0], "o-" if data.is_sweep else "o", 6)
    for number, (name, points) in enumerate(data.others.items()):
        marker, colour = "s^Dv"[number % 4], theme.accents[1 + number % (len(theme.accents) - 1)]
        _series(axis, points, name, colour, f"{marker}--" if data.is_sweep else marker, 5.5)
    if data.parent_cost is not None:
        axis.axvline(data.parent_cost, color=theme.muted, lw=1.2, ls=":", label="the parent's cost")
    _proof(axis, data, theme)
    axis.yaxis.set_major_formatter(plain)
    axis.xaxis.set_major_formatter(plain)
    better = "lower" if data.lower_is_better else "higher"
    axis.set(xlabel=cost_label(data.cost), ylabel=f"summed score, {better} is better")
    axis.set_title("Quality against cost")
    axis.grid()
    figure.legend(loc="outside right upper")
    return figure


def _series(axis: Axes, points: Sequence[Point], name: str, colour: str, style: str, size: float) -> None:
    line = sorted(points, key=lambda point: point.cost)
    costs, scores = [point.cost for point in line], [point.score for point in line]
    axis.plot(costs, scores, style, color=colour, ms=size, lw=2 if size == 6 else 1.1, label=name, zorder=size)


def _proof(axis: Axes, data: Frontier, theme: Theme) -> None:
    """Shade what no choice from the library can reach: within limit c, no score beyond the bound proven for c."""
    proven = sorted((point.cost, point.bound) for point in data.best if point.bound is not None)
    if not proven:
        return
    axis.update_datalim([(cost, bound) for cost, bound in proven if bound > 0 or axis.get_yscale() == "linear"])
    axis.autoscale_view()
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    ends = [(left, proven[0][1]), *proven] if data.side == "max" else [*proven, (right, proven[-1][1])]
    costs, bounds = zip(*ends, strict=True)
    step = "pre" if data.side == "max" else "post"
    beyond = bottom if data.lower_is_better else top
    axis.fill_between(costs, beyond, bounds, step=step, color=theme.faint, lw=0, label="proven out of reach", zorder=1)
    axis.set(xlim=(left, right), ylim=(bottom, top))


@dataclass(frozen=True)
class Measured:
    """One cost of one model, as predicted from the table and as measured on the realized model."""

    name: str
    cost: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative to the measured value: +0.1 means that the prediction is a tenth too high."""
        return self.predicted / self.measured - 1


def measured_chart(theme: Theme, points: Sequence[Measured], band: float = 0.10) -> Figure:
    """Predicted against measured, one square per cost, with the diagonal and a band around it."""
    costs = list(dict.fromkeys(point.cost for point in points))
    figure = new_figure(min(4.6 * len(costs), 12), 4.8)
    for axis, cost in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
        mine = [point for point in points if point.cost == cost]
        values = [value for point in mine for value in (point.predicted, point.measured)]
        margin = 0.15 * (max(values) - min(values)) or 0.1 * max(values)
        ends = [max(min(values) - margin, 0), max(values) + margin]
        axis.fill_between(ends, [(1 - band) * e for e in ends], [(1 + band) * e for e in ends], color=theme.faint, lw=0)
        axis.plot(ends, ends, color=theme.muted, lw=1)
        for point in mine:
            inside = abs(point.error) <= band
            axis.plot(
                point.measured, point.predicted, "o" if inside else "X", color=theme.accents[0 if inside else 1], ms=7
            )
            axis.annotate(
                point.name, (point.measured, point.predicted), xytext=(7, -4), textcoords="offset points", size=8
            )
        name, _, unit = cost_label(cost).partition(", ")
        axis.set(xlim=ends, ylim=ends, xlabel=f"measured, {unit}", ylabel=f"predicted, {unit}", aspect="equal")
        axis.set_title(f"{name[:1].upper()}{name[1:]}: band is ±{band:.0%}")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter(plain)
    return figure


@dataclass(frozen=True)
class Budget:
    """One limit: what is allowed, what the child uses, what the parent would. `least`: the limit is a minimum."""

    cost: str
    limit: float
    used: float
    parent: float | None = None
    least: bool = False

    @property
    def slack(self) -> float:
        """What is left, in the cost's unit; negative where the limit is broken."""
        return self.used - self.limit if self.least else self.limit - self.used

    @property
    def is_kept(self) -> bool:
        return self.slack >= -1e-9 * abs(self.limit)


def budget_chart(theme: Theme, budgets: Sequence[Budget]) -> Figure:
    """Each budget as bars relative to its limit: the parent's before, the child's after."""
    figure = new_figure(9, 1.3 + 0.75 * len(budgets))
    axis = figure.subplots()
    for row, budget in enumerate(budgets):
        shares = [(budget.parent, theme.muted, "parent", -0.19), (budget.used, theme.accents[0], "child", 0.19)]
        for value, colour, name, offset in shares:
            if value is None:
                continue
            share = value / budget.limit if budget.limit else 0.0
            bad = name == "child" and not budget.is_kept
            bar = axis.barh(row + offset, share, height=0.34, color=theme.accents[1] if bad else colour)
            axis.bar_label(bar, [f" {name} {plain(value)}"], color=theme.ink, size=8, padding=2)
    axis.axvline(1, color=theme.accents[1], lw=1.4)
    axis.set_yticks(
        range(len(budgets)),
        [f"{cost_label(b.cost)}\n{'at least' if b.least else 'at most'} {plain(b.limit)}" for b in budgets],
    )
    axis.set_xlim(0, 1.22 * max(1, *(value / b.limit for b in budgets for value in (b.used, b.parent or 0) if b.limit)))
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.invert_yaxis()
    axis.set(xlabel="share of the limit (line)")
    axis.set_title("Budgets, before and after")
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    return figure
