"""The look of every picture, and maps with one column per layer. Colours are told apart by all kinds of colour vision.

matplotlib is imported where it is used: it comes with the extra `report`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.errors import UserError
from lnlit.specs import NOOP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

    from lnlit.search.dependency import Dependency


@dataclass(frozen=True)
class Theme:
    """Colours of a picture. `ramp` runs from nothing to much; `accents` are Okabe and Ito's, adapted to the page."""

    name: str
    page: str
    ink: str
    muted: str
    faint: str
    ramp: tuple[str, ...]
    accents: tuple[str, ...]


LIGHT = Theme(
    name="light",
    page="#ffffff",
    ink="#1f2733",
    muted="#667085",
    faint="#e3e7ee",
    ramp=("#eef3f9", "#c3d6ea", "#86b0d6", "#4584bd", "#1f5f9e", "#12467a"),
    accents=("#0b5fa5", "#d55e00", "#009e73", "#b8860b", "#b0569a", "#4f6d7a"),
)
DARK = Theme(
    name="dark",
    page="#12161d",
    ink="#e6eaf0",
    muted="#98a2b3",
    faint="#2b323d",
    ramp=("#1c2532", "#243f5e", "#2d6193", "#4489c4", "#74abda", "#a9d0f2"),
    accents=("#6cb4ee", "#ff9655", "#3fd0a4", "#e8bd4a", "#e59bcf", "#9fb4bf"),
)

#: Layers beyond which a column is too narrow for text.
_MOST_LABELS = 90
#: Draws one picture in a theme.
Draw = Callable[[Theme], "Figure"]


def save_png(file: Path, draw: Draw) -> None:
    """Write the light picture to `file`."""
    file.write_bytes(png(draw, LIGHT))


def png(draw: Draw, theme: Theme) -> bytes:
    """A picture as PNG. The same data give the same bytes."""
    with _style(theme):
        buffer = io.BytesIO()
        draw(theme).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


def check_matplotlib() -> None:
    """Raises `UserError` where pictures cannot be drawn, for a stage to ask before long work."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install 'lnlit[report]'.") from error


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_dependency(file: Path, dependency: Dependency, groups: Sequence[Sequence[int]] = ()) -> None:
    """The block-dependency matrix, `groups` of layers that are fused framed, over what each layer does."""
    save_png(file, lambda theme: dependency_map(theme, dependency, groups))


def dependency_map(theme: Theme, dependency: Dependency, groups: Sequence[Sequence[int]] = ()) -> Figure:
    from matplotlib.patches import Rectangle

    count = len(dependency.layers)
    figure = new_figure(7.6, 8.4)
    matrix, lines = figure.subplots(2, 1, height_ratios=(5, 1.25))
    values = [[v if j > i else math.nan for j, v in enumerate(row)] for i, row in enumerate(dependency.matrix)]
    norm = _norm([v for row in values for v in row], logarithmic=True)
    mesh = _cells(matrix, values, theme, norm)
    place = {layer: at for at, layer in enumerate(dependency.layers)}
    for group in groups:
        ends = [place[layer] for layer in (group[0], group[-1]) if layer in place]
        if len(ends) == 2:
            size = ends[1] - ends[0] + 1
            frame = Rectangle((ends[0], ends[0]), size, size, fill=False, ec=theme.accents[1], lw=1.6, zorder=3)
            matrix.add_patch(frame)
    matrix.set_aspect("equal")
    matrix.set(xlabel="layer whose update is measured", ylabel="layer that is removed")
    matrix.set_title("Block dependency: pale means nearly independent" + (", framed means fused" if groups else ""))
    _layer_ticks(matrix.xaxis, dependency.layers)
    _layer_ticks(matrix.yaxis, dependency.layers)
    _colour_bar(figure, mesh, matrix, "cosine distance of its update\nwith and without the removed layer")
    at = [index + 0.5 for index in range(count)]
    lines.plot(at, dependency.size, color=theme.accents[0], label="size of the update relative to its input")
    lines.plot(at, dependency.change, color=theme.accents[1], label="cosine distance of input and output")
    lines.set(xlim=(0, count), xlabel="layer", yscale="log")
    for ticks in (lines.yaxis.set_major_formatter, lines.yaxis.set_minor_formatter):
        ticks(_few_digits)
    _layer_ticks(lines.xaxis, dependency.layers)
    lines.grid(axis="y")
    lines.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.32))
    return figure


@dataclass(frozen=True)
class Strip:
    """One row of an architecture map: per layer a label and the share that is left, 0 to 1 (None: unknown)."""

    model: str
    slot: str
    labels: Sequence[str]
    shares: Sequence[float | None]


def architecture_map(theme: Theme, strips: Sequence[Strip], label: str) -> Figure:
    """Layer x slot, coloured by share (`label` says of what); the rows of one model stand together."""
    layers = len(strips[0].labels)
    models = list(dict.fromkeys(strip.model for strip in strips))
    per_model = {model: [strip for strip in strips if strip.model == model] for model in models}
    letters = max(len(label) for strip in strips for label in strip.labels) if layers <= _MOST_LABELS else 0
    row_height = max(0.45, 0.12 + 0.07 * letters)
    figure = new_figure(11, 1.0 + row_height * len(strips) + 0.15 * len(models))
    axes = figure.subplots(
        len(models), 1, sharex=True, squeeze=False, height_ratios=[len(per_model[model]) for model in models]
    )[:, 0]
    mesh = None
    for axis, model in zip(axes, models, strict=True):
        rows = per_model[model]
        shares = [[math.nan if share is None else min(share, 1.0) for share in row.shares] for row in rows]
        mesh = _cells(axis, shares, theme, _limits(0.0, 1.0))
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
    theme: Theme, scores: Sequence[Mapping[str, float]], chosen: Sequence[str], label: str, lower_is_better: bool = True
) -> Figure:
    """Candidate x layer, coloured by score, chosen candidates ringed. A cell is empty where a layer has no such one."""
    names = list(dict.fromkeys(name for layer in scores for name in layer))
    values = [[layer.get(name, math.nan) for layer in scores] for name in names]
    flat = [value for row in values for value in row if not math.isnan(value)]
    figure = new_figure(11, min(1.6 + 0.22 * len(names), 14))
    axis = figure.subplots()
    mesh = _cells(axis, values, theme, _norm(flat, logarithmic=lower_is_better and min(flat, default=0) >= 0))
    rings = [(layer + 0.5, names.index(name) + 0.5) for layer, name in enumerate(chosen) if name in names]
    if rings:
        across, down = zip(*rings, strict=True)
        axis.scatter(across, down, s=26, facecolor=theme.page, edgecolor=theme.accents[1], linewidth=1.6, zorder=3)
    step = max(1, round(len(names) / 56))
    axis.set_yticks([index + 0.5 for index in range(0, len(names), step)], names[::step])
    axis.set_title("What each candidate alone costs in quality; rings mark the choice")
    axis.set_xlabel("layer")
    _layer_ticks(axis.xaxis, range(len(scores)))
    _colour_bar(figure, mesh, axis, label)
    return figure


@contextmanager
def _style(theme: Theme) -> Iterator[None]:
    check_matplotlib()
    from cycler import cycler
    from matplotlib import rc_context

    with rc_context(
        {
            "figure.facecolor": theme.page,
            "axes.facecolor": theme.page,
            "savefig.facecolor": theme.page,
            "axes.edgecolor": theme.faint,
            "axes.labelcolor": theme.muted,
            "axes.titlecolor": theme.ink,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=theme.accents),
            "font.size": 9,
            "grid.color": theme.faint,
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "legend.labelcolor": theme.ink,
            "lines.linewidth": 1.8,
            "text.color": theme.ink,
            "xtick.color": theme.faint,
            "xtick.labelcolor": theme.muted,
            "ytick.color": theme.faint,
            "ytick.labelcolor": theme.muted,
        }
    ):
        yield


def _cells(axis: Axes, values: Sequence[Sequence[float]], theme: Theme, norm: Normalize) -> Any:
    """A grid of coloured cells with gaps, first row on top, without a frame."""
    import numpy as np

    masked = np.ma.masked_invalid(np.array(values, dtype=float))
    mesh = axis.pcolormesh(masked, cmap=_ramp(theme), norm=norm, edgecolors=theme.page, linewidth=0.8)
    axis.set(xlim=(0, masked.shape[1]), ylim=(masked.shape[0], 0))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return mesh


def _write_cells(axis: Axes, labels: Sequence[Sequence[str]], shares: Sequence[Sequence[float]], theme: Theme) -> None:
    """The labels into their cells, where there is room for text."""
    if len(labels[0]) > _MOST_LABELS:
        return
    pale, deep = (theme.ink, theme.page) if theme.name == "light" else (theme.ink, "#0b1119")
    size = 7 if len(labels[0]) <= 48 else 5.5
    for row, (names, filled) in enumerate(zip(labels, shares, strict=True)):
        for layer, (name, share) in enumerate(zip(names, filled, strict=True)):
            colour = theme.muted if name == NOOP.type else deep if share > 0.5 else pale
            text = "none" if name == NOOP.type else name
            axis.text(layer + 0.5, row + 0.5, text, rotation=90, ha="center", va="center", size=size, color=colour)


def _ramp(theme: Theme) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list(f"lnlit-{theme.name}", theme.ramp)
    return ramp.with_extremes(bad=theme.page)


def _limits(low: float, high: float) -> Normalize:
    from matplotlib.colors import Normalize

    return Normalize(low, high)


def _norm(values: Sequence[float], logarithmic: bool) -> Normalize:
    """A scale over the finite values, at most four decades of it: what lies below has the palest colour."""
    from matplotlib.colors import LogNorm, Normalize

    finite = [value for value in values if math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    if not logarithmic or not positive or max(positive) < 3 * min(positive):
        return Normalize(min([0.0, *finite]), max([*finite, 1e-12]))
    norm = LogNorm(max(min(positive), max(positive) / 1e4), max(positive), clip=True)
    return norm


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


def _few_digits(value: float, _: Any) -> str:
    """Labels at 1, 2 and 5 of each decade of a logarithmic axis."""
    return plain(value) if f"{value:e}"[0] in "125" else ""


def plain(value: float, _: Any = None) -> str:
    """A number for reading, without powers of ten or needless digits: 0.003, 25.31, 1,500, 134.5M, 70.55B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
