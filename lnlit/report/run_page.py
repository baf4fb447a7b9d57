"""The page of a pipeline: what each stage was, how long it took, its curves, pictures and tables, in their order."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lnlit.files import expanded, listed
from lnlit.report.charts import Line, Points, line_chart
from lnlit.report.pages import Table, render
from lnlit.report.picture import Picture
from lnlit.report.theme import LIGHT, Theme, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Heading of a chart -> the metrics that it shows, without "train/" and "val/".
_CHARTS = {"Loss": ("loss",), "KL": ("kl",), "Reward": ("reward", "rewards/*/mean")}
#: Further numbers of a training run -> what is said of their mean and their maximum.
_MEAN, _MOST = {"perf/tokens_per_s": "tokens/s"}, {"memory/peak_gib": "GiB at most"}
#: A rule below the head of a table in Markdown.
_RULE = re.compile(r"\|[\s:|-]+\|")


@dataclass(frozen=True)
class Ran:
    """A stage as its pipeline knows it. `about` is the comment that its file begins with, `seconds` None if it has not
    finished, `outs` its results, and `root` the folder of a training run's logs."""

    name: str
    about: str
    command: str
    said: str
    seconds: float | None
    outs: Sequence[str]
    root: str | None = None


@dataclass(frozen=True)
class _Shown:
    ran: Ran
    note: str
    curves: Sequence[Picture]
    images: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    links: Sequence[tuple[str, str]]


def page(title: str, stages: Sequence[Ran], beside: Path) -> str:
    """The complete HTML page, which lies in the folder `beside`; links are relative to it."""
    finished = {stage.name: stage.seconds for stage in stages if stage.seconds is not None}
    drawn = partial(seconds_chart, seconds=finished)
    return render(
        "run.html.j2",
        title=title,
        lead=f"{len(finished)} of {len(stages)} stages have finished, in {duration(sum(finished.values()))}.",
        numbers=(),
        times=[Picture("seconds", "Seconds", "How long each finished stage took.", drawn)] if finished else [],
        stages=[_shown(stage, beside) for stage in stages],
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 1 h 42 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def seconds_chart(theme: Theme, seconds: Mapping[str, float]) -> Figure:
    """A bar for each stage."""
    figure = new_figure(9, 0.8 + 0.28 * len(seconds))
    axis = figure.subplots()
    bars = axis.barh(range(len(seconds)), list(seconds.values()), height=0.62, color=theme.accents[0])
    axis.bar_label(bars, [duration(each) for each in seconds.values()], color=theme.ink, size=8, padding=4)
    axis.set_yticks(range(len(seconds)), list(seconds))
    axis.set(xlabel="seconds", xlim=(0, 1.15 * max(seconds.values()) or 1.0))
    axis.invert_yaxis()
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    return figure


def _shown(stage: Ran, beside: Path) -> _Shown:
    metrics = scalars(expanded(stage.root) / "logs") if stage.root is not None else {}
    files = [file for out in dict.fromkeys(stage.outs) for file in _beside(expanded(out))]
    if stage.root is not None:  # several runs may share that folder, and this page may lie in it
        files += listed(expanded(stage.root), "rollouts.html")
    return _Shown(
        stage,
        ", ".join(_numbers(metrics)),
        list(_curves(stage.name, metrics)),
        [(file.stem, _data(file)) for file in files if file.suffix == ".png"],
        [table for file in files if file.name == "results.md" for table in tables_of(file.read_text("utf-8"))],
        [(file.name, quote(os.path.relpath(file, beside))) for file in files if file.suffix == ".html"],
    )


def _beside(place: Path) -> list[Path]:
    """The pages, pictures and tables among a stage's results."""
    if place.is_dir():
        return [file for pattern in ("*.html", "*.png", "*/*.png", "results.md") for file in listed(place, pattern)]
    picture = place.with_suffix(".png")
    return [picture] if picture.is_file() else []


def _data(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def scalars(logs: Path) -> dict[str, Points]:
    """The metrics that TensorBoard's files in a folder hold, by name: (step, value), in the order of steps, which the
    files' need not be. {} without any."""
    if not listed(logs, "events.out.tfevents.*"):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(logs), size_guidance={SCALARS: 0})
    events.Reload()
    found = {name: sorted(events.Scalars(name), key=lambda at: at.step) for name in events.Tags()[SCALARS]}
    return {name: [(float(at.step), at.value) for at in points] for name, points in found.items()}


def _of_chart(patterns: Sequence[str], metrics: Mapping[str, Points]) -> dict[str, Points]:
    """The metrics that a chart shows, each with those of its points that are finite."""
    wanted = [f"{where}/{pattern}" for pattern in patterns for where in ("train", "val")]
    names = [
        name
        for pattern in wanted
        for name in metrics
        if fnmatch(name, pattern) and name.count("/") == pattern.count("/")
    ]
    return {name: _finite(metrics[name]) for name in names}


def _finite(points: Points) -> Points:
    return [point for point in points if isfinite(point[1])]


def _curves(stage: str, metrics: Mapping[str, Points]) -> Iterator[Picture]:
    for title, patterns in _CHARTS.items():
        finite = _of_chart(patterns, metrics)
        lines = [Line(name, points, dots=name.startswith("val/")) for name, points in finite.items() if points]
        shown = lines[: len(LIGHT.accents)]
        told = [f"{line.name} {plain(line.points[0][1])} to {plain(line.points[-1][1])}" for line in shown]
        if len(lines) > len(shown):
            told.append(f"{len(lines) - len(shown)} more are not drawn")
        if lost := sum(len(metrics[name]) - len(points) for name, points in finite.items()):
            told.append(f"{lost} values that are no finite number are not drawn")
        if shown:
            drawn = partial(line_chart, title=title, unit="", lines=shown)
            yield Picture(f"{stage} {title}".lower(), title, f"{title} over optimizer steps: {'; '.join(told)}.", drawn)


def _numbers(metrics: Mapping[str, Points]) -> Iterator[str]:
    for name, unit in _MEAN.items():
        if points := _finite(metrics.get(name, [])):
            yield f"{plain(round(sum(value for _, value in points) / len(points)))} {unit}"
    for name, unit in _MOST.items():
        if points := _finite(metrics.get(name, [])):
            yield f"{max(value for _, value in points):.1f} {unit}"
    for patterns in _CHARTS.values():  # a curve without a finite point is not drawn, and has no place to say so
        finite = _of_chart(patterns, metrics)
        if finite and not any(finite.values()):
            yield f"{', '.join(finite)}: no value is a finite number"


def tables_of(markdown: str) -> list[Table]:
    """The tables of a text in Markdown."""
    tables: list[Table] = []
    lines = markdown.splitlines()
    for index, line in enumerate(lines):
        if index and _RULE.fullmatch(line.strip()) and lines[index - 1].startswith("|"):
            rows = []
            for row in lines[index + 1 :]:
                if not row.startswith("|"):
                    break
                rows.append(("", _cells(row)))
            tables.append(Table(_cells(lines[index - 1]), rows, words=2))
    return tables


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
