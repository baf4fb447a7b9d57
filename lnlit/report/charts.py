"""Charts: quality against cost, predicted against measured, budgets, curves and bars over optimizer steps, and
differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lnlit.report.picture import tips
from lnlit.report.theme import Theme, new_figure, percent, plain

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
#: The relative error up to which a prediction counts as good.
BAND = 0.10
#: If there are more points or bars, groups of neighbours are drawn as their means.
_MOST_POINTS, _MOST_BARS = 160, 80

Points = Sequence[tuple[float, float]]


def cost_label(cost: str) -> str:
    """Name and unit of a cost, e.g. "memory, MiB", or for one workload ("latency_s @ 8x256+64") "latency @ 8x256+64,
    s"."""
    name, at, workload = cost.partition(" @ ")
    ending = next((ending for ending in _UNITS if name.endswith(ending)), "")
    said = name.removesuffix(ending if name != "throughput" else "").replace("_", " ")
    unit = f", {_UNITS[ending]}" if ending else ""
    return f"{said}{at}{workload}{unit}"


@dataclass(frozen=True)
class Point:
    """The cost and the score of one architecture. `bound` is the best score that any architecture could have, as the
    solver proved."""

    cost: float
    score: float
    bound: float | None = None


@dataclass(frozen=True)
class Frontier:
    """The architectures found by the best method and by `others`, in terms of `cost` and score.

    With `is_sweep`, each method was run for many limits on `cost`, so its points are joined by a line. `side` is "max"
    if these limits are maxima, "min" if they are minima.
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
    """Score against cost: the best method, the region that its proof excludes, the other methods, and the parent's
    cost."""
    figure = new_figure(9, 5.2)
    axis = figure.subplots()
    scores = [point.score for points in (data.best, *data.others.values()) for point in points]
    if min(scores, default=0) > 0 and max(scores) > 12 * min(scores):
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(few_digits)
    for number, (name, points) in enumerate({data.best_name: data.best, **data.others}.items()):
        line = sorted(points, key=lambda point: point.cost)
        costs, values = [point.cost for point in line], [point.score for point in line]
        marker, colour = "os^Dv"[number % 5], theme.accents[number % len(theme.accents)]
        dash, width, size = ("--", 1.1, 5.5) if number else ("-", 2, 6)
        (drawn,) = axis.plot(costs, values, dash, lw=width, marker=marker, ms=size, color=colour, label=_label(name))
        drawn.set(zorder=size, linestyle=dash if data.is_sweep else "")
        said = (f"{name}: {plain(point.score)} at {plain(point.cost)}" for point in line)
        _hover(axis, list(zip(costs, values, strict=True)), said, colour)
    if data.parent_cost is not None:
        axis.axvline(data.parent_cost, color=theme.muted, lw=1.2, ls=":", label="the parent's cost")
    _proof(axis, data, theme)
    axis.yaxis.set_major_formatter(plain if axis.get_yscale() == "linear" else few_digits)
    axis.xaxis.set_major_formatter(plain)
    better = "lower" if data.lower_is_better else "higher"
    axis.set(xlabel=cost_label(data.cost), ylabel=f"summed score, {better} is better")
    axis.set_title("Quality against cost")
    axis.grid()
    _legend(figure, axis)
    return figure


def _proof(axis: Axes, data: Frontier, theme: Theme) -> None:
    """Shades what no choice from the library can reach: within limit c, no score is better than the bound proven for
    c."""
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
    """One cost of one model: the value predicted from the cost table, NaN if it could not, and the value measured on
    the realized model."""

    name: str
    cost: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """The error relative to the measured value: +0.1 means that the prediction is 10% too high. NaN without one."""
        return self.predicted / self.measured - 1

    @property
    def is_predicted(self) -> bool:
        return not isnan(self.predicted)


def measured_chart(theme: Theme, points: Sequence[Measured]) -> Figure:
    """Predicted against measured, one square chart per cost, with the diagonal and a band around it."""
    from matplotlib.ticker import MaxNLocator

    costs = list(dict.fromkeys(point.cost for point in points))
    columns = min(len(costs), 3)
    rows = -(-len(costs) // columns)
    figure = new_figure(max(3.7 * columns, 5.5), 0.5 + 3.7 * rows)
    figure.suptitle(f"Predicted against measured; the band is ±{BAND:.0%}", x=0.01, ha="left", size=11, weight="bold")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(costs) :]:
        axis.set_visible(False)
    for axis, cost in zip(axes, costs, strict=False):
        mine = [point for point in points if point.cost == cost]
        values = [value for point in mine for value in (point.predicted, point.measured)]
        margin = 0.15 * (max(values) - min(values)) or 0.1 * max(values)
        ends = [max(min(values) - margin, 0), max(values) + margin]
        axis.fill_between(ends, [(1 - BAND) * e for e in ends], [(1 + BAND) * e for e in ends], color=theme.faint, lw=0)
        axis.plot(ends, ends, color=theme.muted, lw=1)
        for point in mine:
            good, at = abs(point.error) <= BAND, (point.measured, point.predicted)
            said = f"{point.name}: {plain(point.predicted)} predicted, {plain(point.measured)} measured"
            axis.plot(*at, "o" if good else "X", color=theme.accents[0 if good else 1], ms=7, gid=tips([said]))
            right = point.measured > sum(ends) / 2
            place = {"xytext": (-7 if right else 7, -4), "ha": "right" if right else "left"}
            axis.annotate(point.name, at, textcoords="offset points", size=8, **place)
        name, _, unit = cost_label(cost).partition(", ")
        axis.set(xlim=ends, ylim=ends, xlabel=f"measured, {unit}", ylabel=f"predicted, {unit}", aspect="equal")
        axis.set_title(f"{name[:1].upper()}{name[1:]}", size=9.5)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(5))
            ticks.set_major_formatter(plain)
    return figure


@dataclass(frozen=True)
class Limit:
    """One limit on a cost, with the amounts that the child and the parent use. With `least`, the limit is a minimum."""

    cost: str
    limit: float
    used: float
    parent: float | None = None
    least: bool = False

    @property
    def slack(self) -> float:
        """The distance to the limit in the cost's unit; negative if the limit is broken."""
        return self.used - self.limit if self.least else self.limit - self.used

    @property
    def is_kept(self) -> bool:
        return self.slack >= -1e-9 * abs(self.limit)

    @property
    def change(self) -> float:
        """The child's cost relative to the parent's, minus 1; 0 if the parent's is unknown."""
        return self.used / self.parent - 1 if self.parent else 0.0

    @property
    def amount(self) -> tuple[str, str]:
        """(name of the cost, the child's value with its unit)."""
        name, _, unit = cost_label(self.cost).partition(", ")
        return name, f"{plain(self.used)} {unit}".strip()

    def __str__(self) -> str:
        return f"{'at least' if self.least else 'at most'} {plain(self.limit)}"


def budget_chart(theme: Theme, limits: Sequence[Limit]) -> Figure:
    """Each budget as bars relative to its limit: the parent's value and the child's."""
    figure = new_figure(9, 1.3 + 0.75 * len(limits))
    axis = figure.subplots()
    for row, limit in enumerate(limits):
        child = theme.accents[0 if limit.is_kept else 1]
        for name, value, colour in (("parent", limit.parent, theme.muted), ("child", limit.used, child)):
            if value is not None:
                share = value / limit.limit if limit.limit else 0.0
                bar = axis.barh(row + (0.19 if name == "child" else -0.19), share, height=0.34, color=colour)
                over = {"facecolor": theme.page, "edgecolor": "none", "pad": 0.6}  # the line of the limit
                axis.bar_label(bar, [f"{name} {plain(value)}"], color=theme.ink, size=8, padding=4, bbox=over, zorder=3)
    axis.axvline(1, color=theme.accents[1], lw=1.4)
    axis.set_yticks(range(len(limits)), [f"{cost_label(limit.cost)}\n{limit}" for limit in limits])
    axis.set_xlim(0, 1.22 * max(1, *(value / b.limit for b in limits for value in (b.used, b.parent or 0) if b.limit)))
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.invert_yaxis()
    axis.set(xlabel="share of the limit (line)")
    axis.set_title("Budgets, before and after")
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    return figure


@dataclass(frozen=True)
class Line:
    """A curve over optimizer steps. With `dots`, each point is marked; a `dashed` one is drawn less prominently."""

    name: str
    points: Points
    dots: bool = False
    dashed: bool = False


def line_chart(theme: Theme, title: str, unit: str, lines: Sequence[Line]) -> Figure:
    """Curves over optimizer steps, each with its latest value. With the unit "share", values are fractions of 1."""
    figure, axis, number = *_over_steps(title, unit, len(lines)), percent if unit == "share" else plain
    for line, colour in zip(lines, theme.accents, strict=False):
        points = thinned(line.points, _MOST_POINTS)
        marker = "o" if line.dots or len(points) == 1 else ""
        look = {"ls": (0, (4, 2.5)), "lw": 1.3} if line.dashed else {}
        label = _label(f"{line.name}: {number(line.points[-1][1])}")
        axis.plot(*zip(*points, strict=True), marker=marker, ms=5, color=colour, label=label, clip_on=False, **look)
        _hover(axis, points, (f"{line.name}, step {x:g}: {number(y)}" for x, y in points), colour)
    if unit == "share":
        axis.set_ylim(0, 1)
    elif 0 <= axis.dataLim.y0 < 0.4 * axis.dataLim.y1:
        axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(number)
    _legend(figure, axis)
    return figure


def stacked_bars(theme: Theme, title: str, unit: str, parts: Mapping[str, Points]) -> Figure:
    """Stacked bars, one per step. All parts have the same steps, and the legend shows the mean of each."""
    figure, axis = _over_steps(title, unit, len(parts))
    thin = {name: thinned(points, _MOST_BARS) for name, points in parts.items()}
    steps = [x for x, _ in next(iter(thin.values()))]
    totals = [sum(points[at][1] for points in thin.values()) for at in range(len(steps))]
    width = 0.82 * min((b - a for a, b in pairwise(steps)), default=1.0)
    base = [0.0] * len(steps)
    for number, (name, points) in enumerate(thin.items()):
        heights = [y for _, y in points]
        label = f"{name}: {plain(fmean(y for _, y in parts[name]))} {unit} on average"
        colour = theme.accents[number % len(theme.accents)]
        bars = axis.bar(steps, heights, width, base, color=colour, label=_label(label))
        for bar, x, y, total in zip(bars, steps, heights, totals, strict=True):
            bar.set_gid(tips([f"{name}, step {x:g}: {plain(y)} {unit} of {plain(total)}"]))
        base = [low + y for low, y in zip(base, heights, strict=True)]
    axis.yaxis.set_major_formatter(plain)
    _legend(figure, axis)
    return figure


@dataclass(frozen=True)
class Difference:
    """The difference between two runs: its value in each repetition, and for each kind of interval (mean, low, high).
    None stands for an interval that cannot be computed."""

    each: Sequence[float]
    intervals: Mapping[str, tuple[float, float | None, float | None] | None]


def difference_chart(theme: Theme, charts: Mapping[str, Mapping[str, Difference]], first: str) -> Figure:
    """One chart per title, which shows differences from `first`: each row has one dot per repetition and its
    intervals."""
    figure = new_figure(8, 0.6 + sum(0.9 + 0.5 * len(rows) for rows in charts.values()))
    axes = figure.subplots(len(charts), 1, squeeze=False)[:, 0]
    kinds = list(dict.fromkeys(kind for rows in charts.values() for row in rows.values() for kind in row.intervals))
    for axis, (title, rows) in zip(axes, charts.items(), strict=True):
        axis.axvline(0, color=theme.muted, linewidth=1)
        for at, row in enumerate(rows.values()):
            if not row.each:
                axis.text(0, at, "  nothing to compare", va="center", color=theme.muted)
                continue
            axis.plot(row.each, [at - 0.15] * len(row.each), "o", color=theme.accents[0], ms=4)
            for number, kind in enumerate(kinds):
                _interval(axis, row.intervals.get(kind), at - 0.15 + 0.3 * number, theme.accents[number])
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"difference from {first}")
        axis.set_title(title)
        axis.xaxis.set_major_formatter(plain)
        axis.grid(axis="x")
    dots = axes[0].plot([], [], "o", color=theme.accents[0], ms=4, label="one repetition")
    for kind, colour in zip(kinds, theme.accents, strict=False):
        dots += axes[0].plot([], [], color=colour, lw=3, label=f"95 % over {kind}")
    figure.legend(handles=dots, loc="outside lower center", ncols=3)
    return figure


def _interval(axis: Axes, bar: tuple[float, float | None, float | None] | None, height: float, colour: str) -> None:
    if bar is None:
        return
    mean, low, high = bar
    if low is not None and high is not None:
        axis.plot([low, high], [height, height], color=colour, lw=3, alpha=0.55)
    axis.plot([mean], [height], "D", color=colour, ms=5)


def thinned(points: Points, most: int) -> Points:
    """Reduces the points to at most `most`, each the mean of a group of neighbours."""
    count = len(points)
    if count <= most:
        return points
    groups = [points[start:end] for start, end in pairwise(count * part // most for part in range(most + 1))]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def few_digits(value: float, _: Any = None) -> str:
    """The label of a tick on a logarithmic axis; empty except at 1, 2 and 5 of each decade."""
    return plain(value) if f"{value:e}"[0] in "125" else ""


def _over_steps(title: str, unit: str, lines: int) -> tuple[Figure, Axes]:
    figure = new_figure(5.8, 2.7 + 0.1 * lines)
    axis = figure.subplots()
    axis.set(xlabel="optimizer step", ylabel=unit)
    axis.set_title(title, size=10)
    axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[attr-defined]
    axis.xaxis.set_major_formatter(plain)
    axis.grid(axis="y")
    return figure, axis


def _hover(axis: Axes, points: Points, said: Any, colour: str) -> None:
    """Adds invisible points that show a text under the pointer."""
    axis.plot(*zip(*points, strict=True), "o", color=colour, ms=7, alpha=0, gid=tips(said))


def _label(text: str) -> str:
    """A name on one line for the legend. matplotlib would omit names that start with an underscore, so they get a space
    in front."""
    line = text.replace("\n", " ")
    return f" {line}" if line.startswith("_") else line


def _legend(figure: Figure, axis: Axes) -> None:
    """Adds a legend below the axes, with as many columns as fit."""
    handles, labels = axis.get_legend_handles_labels()
    widest = max(map(len, labels), default=1)
    across = int(figure.get_figwidth() * 14) // (widest + 6)
    figure.legend(handles, labels, loc="outside lower left", ncols=max(1, min(across, len(labels))))
