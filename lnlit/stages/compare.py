"""Compares the runs of an ablation, arm by arm: a table as Markdown and JSON, and a chart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from lnlit.errors import did_you_mean
from lnlit.eval.intervals import Mean, mean_of_numbers
from lnlit.files import expanded, read_json, write_file, write_json
from lnlit.report.charts import Difference, difference_chart
from lnlit.report.picture import png
from lnlit.report.theme import plain

#: The outcome of a run whose results count.
FINISHED = "finished"
TABLE, DATA, PICTURE = "ablation.md", "ablation.json", "ablation.png"


@dataclass(frozen=True)
class Metric:
    """A value to read from a run. If the stage of `file` (without .yaml) `is_fit`, `key` is a metric in its results;
    otherwise it is a dotted path in the JSON that the stage has written."""

    file: str
    key: str
    is_fit: bool = True


@dataclass(frozen=True)
class Asked:
    """The comparison to make: metrics by name, and arms, of which the first is the baseline."""

    metrics: Mapping[str, Metric]
    arms: Sequence[str]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Outcome:
    """How one arm with one seed has ended, in words. Only a `FINISHED` run is read, and only the results of its `files`
    (without .yaml), because there may be older ones of other files. `about` is shown with it."""

    arm: str
    seed: int
    text: str
    files: Collection[str]
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One metric of one arm. `values` and `questions` are by seed. `left_out` counts runs without a value by reason,
    `early` counts runs that were validated before their last step, and `logged` lists the metrics of runs without this
    one."""

    values: Mapping[int, float]
    questions: Mapping[int, Mapping[str, float]]
    left_out: Mapping[str, int]
    early: int = 0
    logged: Collection[str] = ()
    over_seeds: Mean | None = None
    over_questions: Mean | None = None
    differences: Mapping[int, float] = field(default_factory=dict)


def compare(out: Path, asked: Asked, outcomes: Sequence[Outcome]) -> str:
    """Writes the table and the chart of the runs `out`/ARM/seed-N, and returns the table.

    Args:
        out: The folder of the ablation.
        asked: The comparison to make.
        outcomes: The outcome of every arm and seed.
    """
    finished = {(each.arm, each.seed): each.files for each in outcomes if each.text == FINISHED}
    found = {name: _row(out, asked, metric, finished) for name, metric in asked.metrics.items()}
    cells = {name: _compared(row, asked.arms[0]) for name, row in found.items()}
    table = render(cells, asked)
    runs = [
        {"arm": each.arm, "seed": each.seed, "outcome": each.text, **each.about, "folder": str(folder)}
        for each in outcomes
        for folder in [run_folder(out, each.arm, each.seed)]
    ]
    metrics = {name: {arm: _as_json(cell) for arm, cell in row.items()} for name, row in cells.items()}
    charts = {name: _chart(row, asked) for name, row in cells.items()}
    write_file(out / PICTURE, png(lambda theme: difference_chart(theme, charts, asked.arms[0])))
    write_file(out / TABLE, table)
    write_json(out / DATA, {"compared_with": asked.arms[0], "metrics": metrics, "runs": runs})
    return table


def run_folder(out: Path, arm: str, seed: int) -> Path:
    """The folder of one arm with one seed."""
    return out / arm / f"seed-{seed}"


def results_file(folder: Path, file: str) -> Path:
    """The file to which a fit of a run writes its results. `file` is the name of its YAML, without .yaml."""
    return folder / f"{file}.results.json"


# reading


def _row(
    out: Path, asked: Asked, metric: Metric, finished: Mapping[tuple[str, int], Collection[str]]
) -> dict[str, Cell]:
    found = {}
    for arm in asked.arms:
        values, questions, early, logged = {}, {}, 0, set()
        left_out: Counter[str] = Counter()
        for seed in asked.seeds:
            if (arm, seed) not in finished:
                left_out["failed"] += 1
                continue
            folder = run_folder(out, arm, seed)
            is_there = metric.file in finished[arm, seed]
            value, answers, is_early = _read(folder, metric) if is_there else (None, {}, False)
            if value is None:
                left_out["without this metric"] += 1
                logged |= _logged(folder, metric) if is_there else set()
            elif not math.isfinite(value):
                left_out["not finite"] += 1
            else:
                values[seed], questions[seed] = value, answers
                early += is_early
        found[arm] = Cell(values, questions, dict(left_out), early, logged)
    return found


def _read(folder: Path, metric: Metric) -> tuple[float | None, Mapping[str, float], bool]:
    """(value or None, question -> value, whether the value is of a step before the last)."""
    if metric.is_fit:
        results = read_json(results_file(folder, metric.file), "the results of a run")
        if metric.key not in results["metrics"]:
            return None, {}, False
        value = results["metrics"][metric.key]
        is_early = metric.key.startswith("val/") and results["validated_at"] not in (None, results["step"])
        return math.nan if value is None else value, results["questions"].get(metric.key, {}), is_early
    stage = yaml.safe_load((folder / f"{metric.file}.yaml").read_text(encoding="utf-8"))
    node: Any = read_json(expanded(stage["out"]))
    for part in metric.key.split("."):
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (LookupError, TypeError, ValueError):
            return None, {}, False
    if node is None:
        return math.nan, {}, False
    is_number = isinstance(node, int | float) and not isinstance(node, bool)
    return float(node) if is_number else None, {}, False


def _logged(folder: Path, metric: Metric) -> set[str]:
    return set(read_json(results_file(folder, metric.file))["metrics"]) if metric.is_fit else set()


# comparing


def _compared(row: Mapping[str, Cell], first: str) -> dict[str, Cell]:
    """Each arm with its paired differences from the first arm."""
    return {arm: cell if arm == first else _paired(cell, row[first]) for arm, cell in row.items()}


def _paired(cell: Cell, first: Cell) -> Cell:
    seeds = [seed for seed in cell.values if seed in first.values]
    differences = {seed: cell.values[seed] - first.values[seed] for seed in seeds}
    by_question: dict[str, list[float]] = {}
    for seed in seeds:
        for question, value in cell.questions[seed].items():
            if question in first.questions[seed]:
                by_question.setdefault(question, []).append(value - first.questions[seed][question])
    means = [fmean(values) for values in by_question.values()]
    return replace(
        cell,
        over_seeds=mean_of_numbers(list(differences.values())) if differences else None,
        over_questions=mean_of_numbers(means) if means else None,
        differences=differences,
    )


def _as_json(cell: Cell) -> dict[str, Any]:
    over = {"seeds": cell.over_seeds, "questions": cell.over_questions}
    return {
        "mean": fmean(cell.values.values()) if cell.values else None,
        "values": {str(seed): value for seed, value in cell.values.items()},
        "left_out": dict(cell.left_out),
        "validated_before_the_end": cell.early,
        "difference": {
            name: None
            if mean is None
            else {"mean": mean.value, "pairs": mean.questions, "low": mean.low, "high": mean.high}
            for name, mean in over.items()
        },
    }


# showing


def render(cells: Mapping[str, Mapping[str, Cell]], asked: Asked) -> str:
    """The table as Markdown, one for each metric."""
    first, total = asked.arms[0], len(asked.seeds)
    parts = []
    for metric, row in cells.items():
        parts.append(f"## {metric}\n")
        parts.append(f"| arm | runs | mean | difference from {first} | over seeds | over questions | left out |")
        parts.append("|---|---|---|---|---|---|---|")
        for arm, cell in row.items():
            left_out = [f"{count} {why}" for why, count in cell.left_out.items()]
            left_out += [f"({cell.early} validated before the end)"] if cell.early else []
            is_first = arm == first
            difference = "" if is_first else "no pair" if cell.over_seeds is None else _signed(cell.over_seeds.value)
            over = [_told(cell.over_seeds, "seeds"), _told(cell.over_questions, "questions")]
            over = ["", ""] if is_first else over
            columns = [arm, f"{len(cell.values)} of {total}", _mean(cell), difference, *over, ", ".join(left_out)]
            parts.append(f"| {' | '.join(columns)} |")
        parts.append("")
        logged = sorted({name for cell in row.values() for name in cell.logged})
        if logged and not any(cell.values for cell in row.values()):
            guess = did_you_mean(asked.metrics[metric].key, logged)
            parts.append(f"No run has logged this at its end.{guess} Logged: {', '.join(logged)}.\n")
    parts.append(
        f"Means are over seeds, with their standard deviation. Differences are from {first} with the same seed and,"
        " where runs kept them, the same question. Intervals are Student's of 95 %, each comparison by itself. "
        "One over seeds is of other training runs on these questions, one over questions of other questions to these "
        "runs.\n"
    )
    return "\n".join(parts)


def _mean(cell: Cell) -> str:
    values = list(cell.values.values())
    if not values:
        return "none"
    return plain(fmean(values)) + (f" ± {plain(float(f'{stdev(values):.2g}'))}" if len(values) > 1 else "")


def _told(found: Mean | None, of: str) -> str:
    if found is None:
        return "not known"
    if found.questions == 1:
        return f"no interval: one of {of} says nothing of others"
    if found.low is None or found.high is None:
        return f"no interval: all {found.questions} {of} differ by the same"
    return f"{_signed(found.low)} to {_signed(found.high)} ({found.questions} pairs)"


def _signed(value: float) -> str:
    return f"{value:+.3g}"


def _chart(row: Mapping[str, Cell], asked: Asked) -> dict[str, Difference]:
    """The arms after the first, as data for the chart."""

    found = {}
    for arm in asked.arms[1:]:
        over = {"seeds": row[arm].over_seeds, "questions": row[arm].over_questions}
        bars = {kind: None if each is None else (each.value, each.low, each.high) for kind, each in over.items()}
        found[arm] = Difference(list(row[arm].differences.values()), bars)
    return found
