"""Heat maps: architectures, scores and dependencies with one column per layer, and curricula with one column per
rollout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnlit.report.charts import few_digits
from lnlit.report.picture import tips
from lnlit.report.theme import Theme, new_figure, plain
from lnlit.specs import NOOP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from lnlit.search.dependency import Dependency

#: With more layers, columns are too narrow for text.
_MOST_LABELS = 90
#: Numbers of prompts by [rollout][pool].
Table = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Strip:
    """One row of an architecture map: a label per layer, and the fraction of the parent's size that is left (None if
    unknown)."""

    model: str
    slot: str
    labels: Sequence[str]
    shares: Sequence[float | None]


def architecture_map(theme: Theme, strips: Sequence[Strip], label: str) -> Figure:
    """A map of layer x slot, coloured by share. `label` says what the share is of. The rows of a model stand
    together."""
    from matplotlib.colors import Normalize

    layers = len(strips[0].labels)
    models = {strip.model: [each for each in strips if each.model == strip.model] for strip in strips}
    letters = max(len(label) for strip in strips for label in strip.labels) if layers <= _MOST_LABELS else 0
    row_height = max(0.45, 0.12 + 0.07 * letters)
    figure = new_figure(11, 1.0 + row_height * len(strips) + 0.15 * len(models))
    heights = [len(rows) for rows in models.values()]
    axes = figure.subplots(len(models), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    mesh = None
    for axis, (model, rows) in zip(axes, models.items(), strict=True):
        shares = [[math.nan if share is None else min(share, 1.0) for share in row.shares] for row in rows]
        said = [
            f"{model}, layer {layer}, {row.slot}: {name}" + ("" if share is None else f", {share:.0%}")
            for row in rows
            for layer, (name, share) in enumerate(zip(row.labels, row.shares, strict=True))
        ]
        mesh = _cells(axis, shares, theme, Normalize(0.0, 1.0), said)
        if layers <= _MOST_LABELS:
            _write_cells(axis, [row.labels for row in rows], shares, theme)
        axis.set_yticks([index + 0.5 for index in range(len(rows))], [row.slot for row in rows])
        axis.set_ylabel(model, rotation=0, ha="right", va="center", labelpad=10, color=theme.ink, weight="bold")
    _layer_ticks(axes[-1].xaxis, range(layers))
    axes[-1].set_xlabel("layer")
    axes[0].set_title("What is left of each layer")
    bar = _colour_bar(figure, mesh, list(axes), label)
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    return figure


def score_map(
    theme: Theme, scores: Sequence[Mapping[str, float]], chosen: Sequence[str], lower_is_better: bool = True
) -> Figure:
    """A map of candidate x layer, coloured by score, with the chosen candidates ringed. A cell is empty if the layer
    has no such candidate."""
    names = list(dict.fromkeys(name for layer in scores for name in layer))
    values = [[layer.get(name, math.nan) for layer in scores] for name in names]
    flat = [value for row in values for value in row if not math.isnan(value)]
    figure = new_figure(11, min(1.6 + 0.22 * len(names), 14))
    axis = figure.subplots()
    norm = _norm(flat, logarithmic=lower_is_better and min(flat, default=0) >= 0)
    said = [
        f"{name}, layer {layer}: " + ("no such candidate" if math.isnan(value) else f"score {plain(value)}")
        for name, row in zip(names, values, strict=True)
        for layer, value in enumerate(row)
    ]
    mesh = _cells(axis, values, theme, norm, said)
    rings = [(layer + 0.5, names.index(name) + 0.5) for layer, name in enumerate(chosen) if name in names]
    if rings:
        across, down = zip(*rings, strict=True)
        axis.scatter(across, down, s=26, facecolor=theme.page, edgecolor=theme.accents[1], linewidth=1.6, zorder=3)
    step = max(1, round(len(names) / 56))
    axis.set_yticks([index + 0.5 for index in range(0, len(names), step)], names[::step])
    axis.set_title("What each candidate alone costs in quality; rings mark the choice")
    axis.set_xlabel("layer")
    _layer_ticks(axis.xaxis, range(len(scores)))
    _colour_bar(figure, mesh, axis, "score")
    return figure


def dependency_map(theme: Theme, dependency: Dependency, groups: Sequence[Sequence[int]] = ()) -> Figure:
    """The block-dependency matrix, with frames around `groups` of fused layers, above a chart of the size of each
    layer's update."""
    from matplotlib.patches import Rectangle

    count = len(dependency.layers)
    figure = new_figure(7.6, 8.4)
    matrix, lines = figure.subplots(2, 1, height_ratios=(5, 1.25))
    values = [[v if j > i else math.nan for j, v in enumerate(row)] for i, row in enumerate(dependency.matrix)]
    mesh = _cells(matrix, values, theme, _norm([v for row in values for v in row], logarithmic=True))
    place = {layer: at for at, layer in enumerate(dependency.layers)}
    for group in groups:
        ends = [place[layer] for layer in (group[0], group[-1]) if layer in place]
        if len(ends) == 2:
            size = ends[1] - ends[0] + 1
            frame = Rectangle((ends[0], ends[0]), size, size, fill=False, ec=theme.accents[1], lw=1.6, zorder=3)
            matrix.add_patch(frame)
    matrix.set_aspect("equal")
    matrix.set(xlabel="layer whose update is measured", ylabel="layer that is removed")
    matrix.set_title("Block dependency: faint means nearly independent" + (", framed means fused" if groups else ""))
    _layer_ticks(matrix.xaxis, dependency.layers)
    _layer_ticks(matrix.yaxis, dependency.layers)
    _colour_bar(figure, mesh, matrix, "cosine distance of its update\nwith and without the removed layer")
    at = [index + 0.5 for index in range(count)]
    lines.plot(at, dependency.size, color=theme.accents[0], label="size of the update relative to its input")
    lines.plot(at, dependency.change, color=theme.accents[1], label="cosine distance of input and output")
    lines.set(xlim=(0, count), xlabel="layer", yscale="log")
    for ticks in (lines.yaxis.set_major_formatter, lines.yaxis.set_minor_formatter):
        ticks(few_digits)
    _layer_ticks(lines.xaxis, dependency.layers)
    lines.grid(axis="y")
    lines.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.32))
    return figure


def curriculum_map(theme: Theme, rates: Sequence[float], wanted: Table, taken: Table) -> Figure:
    """Two maps of rollout x pass rate: the numbers of prompts wanted and those taken, with the mean pass rate as a
    line."""
    from matplotlib.colors import Normalize

    figure = new_figure(9, 6.4)
    axes = figure.subplots(2, 1, sharex=True)
    most = max(value for table in (wanted, taken) for row in table for value in row)
    mesh: Any = None
    for axis, table, title in zip(axes, (wanted, taken), ("Wanted", "Taken"), strict=True):
        cells = [[row[pool] for row in table] for pool in range(len(rates))]
        mesh = _cells(axis, cells, theme, Normalize(0, most))
        axis.invert_yaxis()  # the easiest on top
        heights = [_height(rates, mean_rate(rates, row)) for row in table]
        axis.plot([n + 0.5 for n in range(len(table))], heights, color=theme.accents[1], label="mean pass rate")
        axis.set_yticks([pool + 0.5 for pool in range(len(rates))], [f"{rate:.3g}" for rate in rates])
        axis.set(ylabel="pass rate")
        axis.set_title(f"{title}, by difficulty")
    axes[-1].set_xlabel("rollout")
    axes[0].legend(loc="upper right")
    _colour_bar(figure, mesh, list(axes), "prompts")
    return figure


def mean_rate(rates: Sequence[float], counts: Sequence[float]) -> float:
    """The mean pass rate of prompts, given how many there are of each rate."""
    return sum(rate * count for rate, count in zip(rates, counts, strict=True)) / sum(counts)


def _height(rates: Sequence[float], rate: float) -> float:
    """The position of a pass rate on an axis with one row per pool of prompts. Rates between two pools are
    interpolated."""
    above = next((pool for pool, own in enumerate(rates) if own >= rate), len(rates) - 1)
    if above == 0:
        return 0.5
    low, high = rates[above - 1], rates[above]
    return above - 0.5 + min((rate - low) / (high - low), 1.0)


def _cells(axis: Axes, values: Table, theme: Theme, norm: Normalize, said: Iterable[str] = ()) -> Any:
    """A grid of coloured cells with gaps and no frame, first row on top. `said` holds a hover text for each cell, row
    by row."""
    import numpy as np

    masked = np.ma.masked_invalid(np.array(values, dtype=float))
    texts = list(said)
    mesh = axis.pcolormesh(
        masked, cmap=theme.colormap(), norm=norm, edgecolors=theme.page, linewidth=0.8, gid=tips(texts) if texts else ""
    )
    axis.set(xlim=(0, masked.shape[1]), ylim=(masked.shape[0], 0))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return mesh


def _write_cells(axis: Axes, labels: Sequence[Sequence[str]], shares: Table, theme: Theme) -> None:
    size = 7 if len(labels[0]) <= 48 else 5.5
    for row, (names, filled) in enumerate(zip(labels, shares, strict=True)):
        for layer, (name, share) in enumerate(zip(names, filled, strict=True)):
            colour = theme.muted if name == NOOP.type else theme.on_deep if share > 0.5 else theme.ink
            text = "none" if name == NOOP.type else name
            axis.text(layer + 0.5, row + 0.5, text, rotation=90, ha="center", va="center", size=size, color=colour)


def _norm(values: Sequence[float], logarithmic: bool) -> Normalize:
    """A colour scale over the finite values. A logarithmic one covers at most four decades, and smaller values get the
    palest colour."""
    from matplotlib.colors import LogNorm, Normalize

    finite = [value for value in values if math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    if not logarithmic or not positive or max(positive) < 3 * min(positive):
        return Normalize(min([0.0, *finite]), max([*finite, 1e-12]))
    return LogNorm(max(min(positive), max(positive) / 1e4), max(positive), clip=True)


def _layer_ticks(axis: Any, layers: Sequence[int]) -> None:
    step = 1 if len(layers) <= 16 else 5 if len(layers) <= 64 else 10
    at = [place for place, layer in enumerate(layers) if layer % step == 0]
    axis.set_ticks([place + 0.5 for place in at], [str(layers[place]) for place in at])


def _colour_bar(figure: Figure, mesh: Any, axes: Axes | list[Axes], label: str) -> Any:
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.yaxis.set_major_formatter(plain)
    return bar
