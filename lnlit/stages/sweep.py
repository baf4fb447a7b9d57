"""`lnlit merge sweep`: models between two are evaluated, and one that balances two tasks is picked (Llama-Nemotron
section 7.3)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lnlit.errors import UserError
from lnlit.eval.figures import Cell, figures
from lnlit.eval.front import Rule, Values, beats_both, front, pick
from lnlit.eval.intervals import Mean, mean_difference
from lnlit.eval.runner import Asked
from lnlit.files import check_output, expanded, write_file, write_json
from lnlit.progress import say
from lnlit.report.fronts import Point, front_chart
from lnlit.report.picture import png
from lnlit.stages.evaluate import evaluated
from lnlit.stages.merge import Alike, Method, alike, write_merged

#: What is written beside the picked model and the evaluations.
MODEL, EVALUATIONS, RESULTS, TABLE, PICTURE = "model", "eval", "sweep.json", "sweep.md", "front.png"


@dataclass(frozen=True)
class Side:
    """One of the two results that are traded: a task in a thinking mode, and the number that it is about."""

    task: str
    thinking: str | None
    figure: str

    def __str__(self) -> str:
        return self.task if self.thinking is None else f"{self.task}, thinking {self.thinking}"


@dataclass(frozen=True)
class Evaluated:
    """A model between two: the share of the second, its results, and for each side its number by question."""

    weight: float
    means: tuple[Mean, Mean]
    by_question: tuple[Mapping[str, float], Mapping[str, float]]

    @property
    def values(self) -> Values:
        return self.means[0].value, self.means[1].value


def sweep(
    models: Sequence[str],
    out: str,
    asked: Asked,
    weights: Sequence[float] = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
    method: Literal["linear", "slerp"] = "linear",
    rule: Rule = "balanced",
    tokenizer: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> Path:
    """Evaluate models between two, and write the one that a rule picks from the front of two tasks.

    The folder gets model/, the picked one; sweep.md and sweep.json with all results, their intervals and their paired
    differences from both models; front.png; and eval/ with all answers. One merged model at a time is on the disk.
    Interrupted, the same command goes on: what was answered is kept.

    Args:
        models: Two models of one architecture.
        out: The folder to write.
        asked: What every model is asked: two tasks, or one in two thinking modes. More must be better in both.
        weights: The shares of the second model; 0 and 1 are always among them. Beyond them, linear extrapolates.
        method: "linear", or "slerp" along the arc between the two.
        rule: "balanced" picks the model whose worse task is best, each from 0, its worst value, to 1, its best. "mean"
            picks the highest mean of both values. What another model beats in both is never picked.
        tokenizer: The model whose tokenizer and chat template merged models get; the first one's by default.
        dtype: The dtype of merged models; by default each tensor's own in the first model.
    """
    if len(models) != 2:
        raise UserError(f"sweep.models: expected two models, got {len(models)}.")
    shares = _shares(weights, method)
    pair = alike(models, tokenizer)
    folder = check_output(expanded(out), folder=True, inputs=models)
    sides, points = None, []
    for share in shares:
        place = folder / f"weight-{share:.10g}"
        source = models[int(share)] if share in (0, 1) else str(_between(pair, share, place, method, dtype))
        found = evaluated([source], asked, str(folder / EVALUATIONS / place.name))
        sides = _sides(found.cells) if sides is None else sides
        points.append(_point(found.cells, share, sides))
        shutil.rmtree(place, ignore_errors=True)
    assert sides is not None
    chosen = pick([point.values for point in points], rule)
    _between(pair, points[chosen].weight, folder / MODEL, method, dtype)
    _write(folder, models, method, rule, sides, points, chosen)
    return folder


def _shares(weights: Sequence[float], method: str) -> list[float]:
    if not all(math.isfinite(weight) for weight in weights):
        raise UserError(f"sweep.weights: expected finite numbers, got {list(weights)}.")
    if method == "slerp" and not all(0 <= weight <= 1 for weight in weights):
        raise UserError(f"sweep.weights: the arc ends at the two models, so from 0 to 1; got {list(weights)}.")
    return sorted({0.0, 1.0, *weights})


def _between(models: Alike, share: float, out: Path, method: Method, dtype: str | None) -> Path:
    """Writes a model between two. An end is written as a sum, which equals it bit by bit."""
    return write_merged(models, [1 - share, share], out, "linear" if share in (0, 1) else method, dtype, overwrite=True)


# results of evaluations


def _sides(cells: Sequence[Cell]) -> tuple[Side, Side]:
    """The two results of an evaluation of one model. Raises `UserError` for more or fewer, and for numbers that are no
    shares, as of a perplexity less is better."""
    found = [Side(cell.task, cell.thinking, cell.first) for cell in cells]
    if len(found) != 2:
        raise UserError(
            f"sweep.asked: a front is of two results, and these are {len(found)}: {'; '.join(map(str, found))}. Give "
            "two tasks in one thinking mode, or one task in two."
        )
    for cell, side in zip(cells, found, strict=True):
        mean = figures(cell).get(side.figure)
        if mean is None or not mean.is_share:
            raise UserError(
                f"sweep.asked: {side}: {side.figure} is {mean.value if mean else None}, and a sweep trades shares from "
                "0 to 1, of which more is better."
            )
    return found[0], found[1]


def _point(cells: Sequence[Cell], share: float, sides: tuple[Side, Side]) -> Evaluated:
    by_side = {(cell.task, cell.thinking): cell for cell in cells}
    if by_side.keys() != {(side.task, side.thinking) for side in sides}:
        raise UserError(
            f"sweep: models[{int(share)}] was asked {', '.join(map(str, by_side))}, the first one {sides[0]} and "
            f"{sides[1]}. Say `thinking` in asked, for only one of them was trained with the toggle."
        )
    first, second = ((by_side[side.task, side.thinking], side.figure) for side in sides)
    means = (figures(first[0])[first[1]], figures(second[0])[second[1]])
    return Evaluated(share, means, (first[0].per_question(first[1]), second[0].per_question(second[1])))


def _difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Mean:
    return mean_difference([ours[key] - theirs[key] for key in ours if key in theirs])


# what is written


def _write(
    folder: Path,
    models: Sequence[str],
    method: str,
    rule: str,
    sides: tuple[Side, Side],
    points: Sequence[Evaluated],
    chosen: int,
) -> None:
    best = front([point.values for point in points])
    ends = [point for point in points if point.weight in (0, 1)]
    rows = []
    for place, point in enumerate(points):
        against = {
            models[int(end.weight)]: [
                vars(_difference(mine, theirs)) for mine, theirs in zip(point.by_question, end.by_question, strict=True)
            ]
            for end in ends
            if end is not point
        }
        rows.append(
            {
                "weight": point.weight,
                "results": [vars(mean) for mean in point.means],
                "against": against,
                "on_front": place in best,
                "beats_both": beats_both(point.values, [end.values for end in ends]),
                "picked": place == chosen,
            }
        )
    drawn = [Point(p.weight, p.means, row["on_front"], row["picked"]) for p, row in zip(points, rows, strict=True)]
    write_file(folder / PICTURE, png(lambda theme: front_chart(theme, drawn, (str(sides[0]), str(sides[1])))))
    table = list(_table(models, sides, points, rows))
    write_file(folder / TABLE, "\n".join(table) + "\n")
    settings = {"models": list(models), "method": method, "rule": rule, "tasks": [vars(side) for side in sides]}
    write_json(folder / RESULTS, {**settings, "points": rows})
    for line in table:
        say(line)


def _table(
    models: Sequence[str], sides: Sequence[Side], points: Sequence[Evaluated], rows: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    yield f"| share of {models[1]} | {sides[0]} | {sides[1]} | |"
    yield "|---|---|---|---|"
    for point, row in zip(points, rows, strict=True):
        words = {"picked": "picked", "on_front": "on the front", "beats_both": "beats both ends in both"}
        said = ", ".join(text for key, text in words.items() if row[key])
        yield f"| {point.weight:g} | {point.means[0]} | {point.means[1]} | {said} |"
    yield ""
    better = [row for row in rows if row["beats_both"]]
    sure = [row for row in better if all((each["low"] or 0) > 0 for pair in row["against"].values() for each in pair)]
    if not better:
        yield "No model between the two beats both of them in both."
    else:
        listing = ", ".join(f"{row['weight']:g}" for row in better)
        certain = ", ".join(f"{row['weight']:g}" for row in sure) or "none"
        yield f"Beat both models in both: {listing}; by more than chance, by paired differences: {certain}."
