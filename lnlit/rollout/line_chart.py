"""Charts as SVG inside of a page, whose style sheet colours them: `--c0` ... for what is drawn, `--ink`, `--line`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from lnlit.html import safe

#: How many colours a page has to give.
COLOURS = 6
#: Pixels of the drawing, which the page scales, and of its margins.
_WIDTH, _HEIGHT = 600, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 38
#: Beyond this many, neighbours are drawn as their mean.
_MOST_POINTS, _MOST_BARS = 160, 80

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A curve over optimizer steps. One with `dots` shows each of its points; a `dashed` one stands back."""

    name: str
    points: Points
    dots: bool = False
    dashed: bool = False


def line_chart(lines: Sequence[Line], limits: tuple[float, float] | None = None, percent: bool = False) -> str:
    """Curves with axes and a legend, as HTML; empty without a point. `limits` are of the vertical axis."""
    drawn = [(number, line) for number, line in enumerate(lines) if line.points]
    if not drawn:
        return ""
    heights = [y for _, line in drawn for _, y in line.points]
    low, high = limits or _padded(min(heights), max(heights))
    frame = _Frame(*_ends([x for _, line in drawn for x, _ in line.points]), low, high)
    parts = [_axes(frame, percent)]
    for number, line in drawn:
        points = thinned(line.points, _MOST_POINTS)
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        style = f'class="c{number % COLOURS}{" dashed" if line.dashed else ""}"'
        parts.append(f'<polyline {style} points="{path}" />')
        shown = "dot" if line.dots or len(points) == 1 else "hit"
        for x, y in points:
            said = safe(f"{line.name}, step {x:g}: {number_text(y, percent)}")
            parts.append(
                f'<circle class="c{number % COLOURS} {shown}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3">'
                f"<title>{said}</title></circle>"
            )
    keys = [(number, line.name, number_text(line.points[-1][1], percent)) for number, line in drawn]
    return _figure(parts, keys)


def stacked_bars(parts: Mapping[str, Points], unit: str) -> str:
    """Bars of parts that add up, one at each step, with axes and a legend, as HTML; empty without a part.

    Every part has the same steps.
    """
    parts = {name: points for name, points in parts.items() if points}
    if not parts:
        return ""
    thin = {name: thinned(points, _MOST_BARS) for name, points in parts.items()}
    steps = [x for x, _ in next(iter(thin.values()))]
    totals = [sum(points[at][1] for points in thin.values()) for at in range(len(steps))]
    gap = min((b - a for a, b in pairwise(steps)), default=1.0)
    frame = _Frame(steps[0] - gap / 2, steps[-1] + gap / 2, 0.0, max(totals) * 1.05 or 1.0)
    wide = max((frame.x(steps[0] + gap) - frame.x(steps[0])) * 0.82, 0.5)
    drawn, base = [_axes(frame, False)], [0.0] * len(steps)
    for number, (name, points) in enumerate(thin.items()):
        for at, (x, y) in enumerate(points):
            top, bottom = frame.y(base[at] + y), frame.y(base[at])
            said = safe(f"{name}, step {x:g}: {number_text(y)} {unit} of {number_text(totals[at])}")
            drawn.append(
                f'<rect class="c{number % COLOURS}" x="{frame.x(x) - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" '
                f'height="{max(bottom - top, 0.0):.1f}"><title>{said}</title></rect>'
            )
            base[at] += y
    keys = [
        (number, name, f"{number_text(fmean(y for _, y in parts[name]))} {unit} on average")
        for number, name in enumerate(thin)
    ]
    return _figure(drawn, keys)


def thinned(points: Points, most: int) -> Points:
    """At most so many points, each the mean of as many neighbours."""
    count = len(points)
    if count <= most:
        return points
    ends = [count * part // most for part in range(most + 1)]
    groups = [points[start:end] for start, end in pairwise(ends)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def number_text(value: float, percent: bool = False) -> str:
    """A number for reading: 0.125, 12.3, 1,500, 45%."""
    if percent:
        return f"{value:.0%}" if abs(value) >= 0.1 or value == 0 else f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    found = [round(count * step, 12) for count in range(first, math.floor(high / step + 1e-9) + 1)]
    return [value + 0.0 for value in found]


@dataclass(frozen=True)
class _Frame:
    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.left) / (self.right - self.left) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return _TOP + (self.high - inside) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _padded(low: float, high: float) -> tuple[float, float]:
    """Limits with some air. 0 is among them where it is near; the axis of one value is about that value."""
    spread = high - low or abs(high) or 1.0
    bottom, top = low - 0.06 * spread, high + 0.06 * spread
    if 0 <= low < 0.6 * spread:
        bottom = 0.0
    return bottom, top


def _axes(frame: _Frame, percent: bool) -> str:
    parts = []
    for value in ticks(frame.low, frame.high, 4):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" />')
        label = f"{value:.0%}" if percent else f"{value:,.6g}"
        parts.append(f'<text class="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{label}</text>')
    for value in ticks(frame.left, frame.right, 6):
        if value == int(value):
            parts.append(f'<text class="middle" x="{frame.x(value):.1f}" y="{_HEIGHT - 20}">{value:,.0f}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="middle" x="{middle:.1f}" y="{_HEIGHT - 4}">optimizer step</text>')
    return "".join(parts)


def _figure(parts: Sequence[str], keys: Sequence[tuple[int, str, str]]) -> str:
    """The drawing, and for each (colour, name, number) a line of its legend."""
    inside = "\n".join(parts)
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" xmlns="http://www.w3.org/2000/svg" role="img"'
    items = "".join(
        f'<li><span class="key c{number % COLOURS}"></span>{safe(name)} <span class="note">{safe(last)}</span></li>'
        for number, name, last in keys
    )
    return f'<svg {box}>\n{inside}\n</svg>\n<ul class="legend">{items}</ul>\n'
