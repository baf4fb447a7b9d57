"""An evaluation as JSON data, for programs that go on with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from lnlit.eval.figures import Cell, Evaluation, Flips, by_group, figures, shares
from lnlit.eval.intervals import Mean


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Models, results by model, task and mode, and paired differences. Numbers that there are not are null."""
    return {
        "models": {name: dict(about) for name, about in evaluation.models.items()},
        "against": evaluation.against,
        "results": [_cell(cell) for cell in evaluation.cells],
        "differences": [
            _difference(cell, name, flip) | {"against": evaluation.against}
            for cell, name, flip in evaluation.against_parent()
        ],
        "thinking": [_difference(cell, name, flip) for cell, name, flip in evaluation.of_thinking()],
        "divergences": [
            {
                "model": model,
                "task": task,
                "thinking": thinking,
                "against": evaluation.against,
                "kl": mean_json(found.kl),
                "agreement": mean_json(found.agreement),
                "tokens": found.tokens,
            }
            for (model, task, thinking), found in evaluation.divergences.items()
        ],
    }


def questions(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """One row for each task and question, with what every model made of it: its numbers, one for each sample."""
    for task in evaluation.tasks:
        cells = [cell for cell in evaluation.cells if cell.task == task]
        for key in dict.fromkeys(key for cell in cells for key in cell.outcomes):
            found = [(cell, cell.outcomes[key]) for cell in cells if key in cell.outcomes]
            yield {
                "task": task,
                "question": key,
                "group": found[0][1].group,
                "prompt": [dict(message) for message in evaluation.prompts.get((task, key), ())],
                "results": [
                    {
                        "model": cell.model,
                        "thinking": cell.thinking,
                        "values": {name: list(column) for name, column in outcome.values.items()},
                        "of_all_samples": dict(outcome.one_value),
                        "tokens": [[one.tokens for one in samples] for samples in outcome.answers],
                    }
                    for cell, outcome in found
                ],
            }


def mean_json(mean: Mean) -> dict[str, Any]:
    return {
        "value": _finite(mean.value),
        "low": _finite(mean.low),
        "high": _finite(mean.high),
        "questions": mean.questions,
    }


def _finite(value: float | None) -> float | None:
    """The number, or None for what JSON cannot hold: there is none, or it is infinite, as a perplexity per word of a
    text that is one word."""
    return value if value is not None and math.isfinite(value) else None


def _cell(cell: Cell) -> dict[str, Any]:
    found = figures(cell)
    first = found.get(cell.first)
    answers = cell.answers
    return {
        "model": cell.model,
        "task": cell.task,
        "thinking": cell.thinking,
        "figure": cell.first,
        **(mean_json(first) if first else {"value": None, "low": None, "high": None, "questions": 0}),
        "samples": len(answers),
        "figures": {name: mean_json(mean) for name, mean in found.items()},
        "totals": {name: mean_json(mean) for name, mean in cell.totals.items()},
        "groups": {name: mean_json(mean) for name, mean in by_group(cell).items()},
        "shares": {name: mean_json(mean) for name, mean in shares(cell).items()},
        "tokens_per_answer": fmean(one.tokens for one in answers) if answers else None,
        "seconds_per_answer": None if math.isnan(cell.seconds) else cell.seconds,
        "not_asked": dict(Counter(cell.left_out.values()).most_common(10)),
        "about": dict(cell.about),
    }


def _difference(cell: Cell, name: str, flip: Flips) -> dict[str, Any]:
    return {
        "model": cell.model,
        "task": cell.task,
        "thinking": cell.thinking,
        "figure": name,
        **mean_json(flip.difference),
        "better": flip.better,
        "worse": flip.worse,
    }
