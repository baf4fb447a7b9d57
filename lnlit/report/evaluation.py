"""An evaluation for people: lines while it runs, tables as Markdown, and a page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from lnlit.eval.figures import OBEYS, Cell, Evaluation, Flips, by_group, figures, shares
from lnlit.eval.intervals import Mean
from lnlit.report.evaluation_charts import Spot, cost_chart, flip_chart
from lnlit.report.pages import Table, render
from lnlit.report.picture import Picture
from lnlit.report.side_by_side import Asked, Side
from lnlit.report.theme import plain
from lnlit.thinking import Thinking

#: Questions of each task that are shown with their answers.
_QUESTIONS = 4
_MODES: dict[Thinking | None, str] = {None: "", "off": "thinking off", "on": "thinking on"}
_COSTS = {"tokens": "tokens per answer", "seconds": "seconds per answer"}


def in_a_line(cell: Cell) -> str:
    """What came out of a cell, for the terminal."""
    parts = [f"{_number_name(cell)} {shown(headline(cell))}", f"{len(cell.outcomes)} questions"]
    if cell.answers:
        parts.append(f"{plain(_tokens(cell))} tokens an answer")
    if not math.isnan(cell.seconds):
        parts.append(f"{plain(cell.seconds)} s an answer")
    parts += [f"{name} {shown(share)}" for name, share in shares(cell).items() if share.value > 0]
    if cell.left_out:
        key, why = next(iter(cell.left_out.items()))
        parts.append(f"{len(cell.left_out)} not asked, such as {key}: {why}")
    return f"{cell.model}, {_task(cell)}: {'; '.join(parts)}"


def markdown(evaluation: Evaluation) -> str:
    """All tables, with a line about each."""
    return _as_text(evaluation, tables(evaluation))


def summary(evaluation: Evaluation) -> str:
    """The tables for the terminal: all but that of all numbers."""
    return _as_text(evaluation, tables(evaluation)[:-1])


def _as_text(evaluation: Evaluation, shown: Sequence[tuple[str, Table, str]]) -> str:
    parts = ["# Evaluation", "", lead(evaluation), ""]
    for title, table, note in shown:
        parts += [f"## {title}", "", *_as_markdown(table), "", *([note, ""] if note else [])]
    return "\n".join(parts)


def page(evaluation: Evaluation) -> str:
    """The complete HTML page. Equal evaluations give equal pages."""
    found = tables(evaluation)
    return render(
        "evaluation.html.j2",
        title="Evaluation",
        lead=lead(evaluation),
        numbers=list(_tiles(evaluation)),
        tables=found[:-1],
        all_numbers=found[-1],
        pictures=list(pictures(evaluation)),
        groups=list(_groups(evaluation)),
        questions=list(_side_by_side(evaluation)),
        facts=_facts(evaluation),
    )


def lead(evaluation: Evaluation) -> str:
    models, tasks = len(evaluation.models), len(evaluation.tasks)
    modes = [mode for mode in evaluation.modes if mode]
    text = f"{models} model{'s' if models > 1 else ''}, {tasks} task{'s' if tasks > 1 else ''}"
    text += f", thinking {' and '.join(modes)}" if modes else ""
    return text + (f", compared with {evaluation.against}" if evaluation.against else "")


# numbers


def headline(cell: Cell) -> Mean:
    """The number that the task is about: its first total if it has any, or else its first number, which is NaN if no
    answer could be judged."""
    own = figures(cell).get(cell.first, Mean(math.nan, None, None, 0))
    return next(iter((*cell.totals.values(), own)))


def shown(mean: Mean | None) -> str:
    """A number with its interval, as a percentage if it is a share."""
    if mean is None or math.isnan(mean.value):
        return "-"
    number = (lambda value: f"{100 * value:.1f}") if mean.is_share else plain
    between = "" if mean.low is None or mean.high is None else f" ({number(mean.low)} to {number(mean.high)})"
    return f"{number(mean.value)}{' %' if mean.is_share else ''}{between}"


def signed(mean: Mean) -> str:
    """A difference with its interval, in percentage points if it is one of shares."""
    number = (lambda value: f"{100 * value:+.1f}") if mean.is_share else (lambda value: f"{value:+.4g}")
    between = "" if mean.low is None or mean.high is None else f" ({number(mean.low)} to {number(mean.high)})"
    return f"{number(mean.value)}{between}"


def _tokens(cell: Cell) -> float:
    return fmean(one.tokens for one in cell.answers)


def _number_name(cell: Cell) -> str:
    return next(iter((*cell.totals, cell.first)))


def _task(cell: Cell) -> str:
    return cell.task + (f", {_MODES[cell.thinking]}" if cell.thinking else "")


# tables


def tables(evaluation: Evaluation) -> list[tuple[str, Table, str]]:
    """(title, table, note) of each, the one of all numbers last."""
    found: list[tuple[str, Table, str]] = []
    switched = [cell for cell in evaluation.cells if cell.thinking]
    others = [cell for cell in evaluation.cells if not cell.thinking]
    for title, cells in (("With thinking off and on", switched), ("Without a thinking mode", others)):
        if cells:
            both = switched and others
            found.append((title if both else "Results", _results(evaluation, cells), _about_results(cells)))
    if evaluation.against:
        found.append(
            (
                f"Against {evaluation.against}, question by question",
                _differences(evaluation.against_parent()),
                "Paired differences in points with 95 % intervals. An interval without 0 is more than chance. Better "
                "and worse count the questions that changed.",
            )
        )
        if evaluation.divergences:
            found.append(_divergences(evaluation))
    if changes := evaluation.of_thinking():
        note = "The same questions with thinking on and off: paired differences in points with 95 % intervals."
        found.append(("What thinking changes", _differences(changes), note))
    if broken := list(_warnings(evaluation)):
        head = ("model", "task", "thinking", "what")
        found.append(("Read with care", Table(head, [("bad", cells) for cells in broken], words=4), ""))
    found.append(("All numbers", _all_numbers(evaluation), ""))
    return found


def _results(evaluation: Evaluation, cells: Sequence[Cell]) -> Table:
    """Tasks down, models and their modes across, as in the paper."""
    columns: list[tuple[str, Thinking | None]] = [
        (model, mode)
        for model in evaluation.models
        for mode in evaluation.modes
        if any((cell.model, cell.thinking) == (model, mode) for cell in cells)
    ]
    head = ["task", *(f"{model}{f', {mode}' if mode else ''}" for model, mode in columns)]
    rows = []
    for task in dict.fromkeys(cell.task for cell in cells):
        row = [evaluation.cell(model, task, mode) for model, mode in columns]
        named = next((_number_name(cell) for cell in row if cell), "")
        rows.append(("", [f"{task}, {named}", *(shown(headline(cell)) if cell else "" for cell in row)]))
    return Table(head, rows)


def _about_results(cells: Sequence[Cell]) -> str:
    counts = {cell.task: len(cell.outcomes) for cell in cells}
    samples = {len(cell.answers) // len(cell.outcomes) for cell in cells if cell.answers and cell.outcomes}
    many = f" Means of {' or '.join(map(str, sorted(samples)))} answers each." if samples and samples != {1} else ""
    return (
        f"Questions: {', '.join(f'{task} {count:,}' for task, count in counts.items())}.{many} In brackets: 95 % "
        "intervals over questions."
    )


def _differences(changes: Sequence[tuple[Cell, str, Flips]]) -> Table:
    head = ("model", "task", "thinking", "number", "difference", "better", "worse", "questions")
    rows = [
        (
            "changed" if flip.difference.is_more_than_chance else "",
            [
                cell.model,
                cell.task,
                cell.thinking or "",
                name,
                signed(flip.difference),
                flip.better,
                flip.worse,
                flip.difference.questions,
            ],
        )
        for cell, name, flip in changes
    ]
    return Table(head, rows, words=4)


def _divergences(evaluation: Evaluation) -> tuple[str, Table, str]:
    head = ("model", "task", "thinking", "KL, nats per token", "same likeliest token", "tokens")
    rows = [
        ("", [model, task, thinking or "", shown(found.kl), shown(found.agreement), f"{found.tokens:,}"])
        for (model, task, thinking), found in evaluation.divergences.items()
    ]
    note = f"KL divergence from {evaluation.against} at the tokens of its own answers. In brackets: 95 % intervals."
    return "On the same tokens", Table(head, rows, words=3), note


def _all_numbers(evaluation: Evaluation) -> Table:
    head = ("model", "task", "thinking", "number", "value", "questions")
    rows: list[tuple[str, list[object]]] = []
    for cell in evaluation.cells:
        found = {**cell.totals, **figures(cell), **shares(cell)}
        place = [cell.model, cell.task, cell.thinking or ""]
        rows += [("", [*place, name, shown(mean), mean.questions]) for name, mean in found.items()]
        if cell.answers:
            rows.append(("", [*place, "tokens per answer", plain(_tokens(cell)), len(cell.outcomes)]))
        if not math.isnan(cell.seconds):
            rows.append(("", [*place, "seconds per answer", plain(cell.seconds), len(cell.outcomes)]))
    return Table(head, rows, words=4)


def _warnings(evaluation: Evaluation) -> Iterator[list[str]]:
    """What a reader must know before trusting a number."""
    for cell in evaluation.cells:
        place = [cell.model, cell.task, cell.thinking or ""]
        found = shares(cell)
        for name, what in (
            ("truncated", "of answers were cut off at the length limit; a larger max_new_tokens may change the result"),
            ("no answer", "of answers hold no answer"),
            ("not judged", "of answers could not be judged, and are left out"),
        ):
            if name in found and found[name].value >= (0.05 if name != "not judged" else 1e-9):
                yield [*place, f"{found[name].value:.1%} {what}"]
        if cell.left_out:
            why, count = Counter(cell.left_out.values()).most_common(1)[0]
            yield [*place, f"{len(cell.left_out)} questions were not asked; {count} of them: {why}"]
        if cut := cell.about.get("questions whose context was cut"):
            yield [*place, f"the context of {cut} questions is longer than the model's, and was cut"]


def _as_markdown(table: Table) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"

    marks = [":--" if number < table.words else "--:" for number in range(len(table.head))]
    return [line(table.head), line(marks), *(line(cells) for _, cells in table.rows)]


# the page


def _tiles(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """The mean over tasks of each model in each mode, of those tasks whose number is a share."""
    for model in evaluation.models:
        told, tasks = [], 0
        for mode in evaluation.modes:
            cells = [cell for cell in evaluation.cells if (cell.model, cell.thinking) == (model, mode)]
            values = [headline(cell).value for cell in cells if headline(cell).is_share]
            if values:
                told.append(f"{f'{mode} ' if mode else ''}{100 * fmean(values):.1f} %")
                tasks = max(tasks, len(values))
        if told:
            yield " · ".join(told), f"{model}, mean over {tasks} task{'s' if tasks > 1 else ''}"


def pictures(evaluation: Evaluation) -> Iterator[Picture]:
    """Accuracy against what an answer costs, task by task, and the differences from the parent."""
    spots = {
        task: [
            _spot(cell)
            for cell in evaluation.cells
            if cell.task == task and cell.answers and not math.isnan(headline(cell).value)
        ]
        for task in evaluation.tasks
    }
    spots = {task: found for task, found in spots.items() if found}
    if spots:
        caption = (
            "Each task's number against tokens and seconds per answer. A line joins a model with thinking off (open) "
            "and on (filled); bars are 95 % intervals. Seconds are those of an engine that answers many at once."
        )
        draw = partial(cost_chart, tasks=spots, models=list(evaluation.models))
        yield Picture("cost", "What accuracy costs", caption, draw)
    changes = [(cell, flip) for cell, name, flip in evaluation.against_parent() if name == cell.first]
    if changes:
        rows = [(f"{cell.model}, {_task(cell)}", flip.difference) for cell, flip in changes]
        title = f"Difference from {evaluation.against}, points"
        said = "; ".join(f"{name}: {signed(mean)}" for name, mean in rows)
        yield Picture(
            "flips", title, f"Paired differences with 95 % intervals. {said}.", partial(flip_chart, rows=rows)
        )


def _spot(cell: Cell) -> Spot:
    costs = {"tokens": _tokens(cell), "seconds": cell.seconds}
    return Spot(cell.model, cell.thinking, headline(cell), {_COSTS[name]: cost for name, cost in costs.items()})


def _groups(evaluation: Evaluation) -> Iterator[tuple[str, Table]]:
    for task in evaluation.tasks:
        cells = [cell for cell in evaluation.cells if cell.task == task]
        found = [by_group(cell) for cell in cells]
        groups = dict.fromkeys(group for each in found for group in each)
        if groups:
            head = [task, *(f"{cell.model}{f', {cell.thinking}' if cell.thinking else ''}" for cell in cells)]
            yield task, Table(head, [("", [group, *(shown(each.get(group)) for each in found)]) for group in groups])


def _side_by_side(evaluation: Evaluation) -> Iterator[tuple[str, list[Asked]]]:
    """For each task the questions on which models and modes differ most, with the first answer of each."""
    for task in evaluation.tasks:
        cells = [cell for cell in evaluation.cells if cell.task == task and cell.answers]
        if not cells:
            continue
        means = [cell.per_question(cell.first) for cell in cells]
        keys = list(dict.fromkeys(key for cell in cells for key in cell.outcomes))

        def spread(key: str, means: list[dict[str, float]] = means) -> float:
            values = [each[key] for each in means if key in each]
            return max(values) - min(values) if values else 0.0

        chosen = sorted(keys, key=lambda key: (-spread(key), keys.index(key)))[:_QUESTIONS]
        yield task, [Asked(_turns(evaluation, task, key), [*_sides(cells, key)]) for key in chosen]


def _turns(evaluation: Evaluation, task: str, key: str) -> list[tuple[str, str]]:
    return [(str(turn["role"]), str(turn.get("content") or "")) for turn in evaluation.prompts.get((task, key), ())]


def _sides(cells: Sequence[Cell], key: str) -> Iterator[Side]:
    for cell in cells:
        outcome = cell.outcomes.get(key)
        if outcome is None or not outcome.answers:
            continue
        means, first = outcome.means(), outcome.answers[0][0]
        value = f"{cell.first} {plain(means[cell.first])}" if cell.first in means else "not judged"
        notes = [f"{first.tokens} tokens"]
        notes += ["cut off in thought"] if first.cut_in_thought else ["cut off"] if first.truncated else []
        notes += [f"first of {len(outcome.answers[0])}"] if len(outcome.answers[0]) > 1 else []
        obeys = outcome.values.get(OBEYS)
        notes += ["disobeys the toggle"] if obeys and obeys[0] == 0 else []
        name = f"{cell.model}, {_MODES[cell.thinking]}" if cell.thinking else cell.model
        yield Side(name, value, ", ".join(notes), first.text)


def _facts(evaluation: Evaluation) -> Table:
    rows: list[tuple[str, list[object]]] = [
        ("", [f"{model}: {name.replace('_', ' ')}", _fact(value)])
        for model, about in evaluation.models.items()
        for name, value in about.items()
    ]
    for cell in evaluation.cells:
        if "sampling" in cell.about:
            rows.append(
                (
                    "",
                    [
                        f"{cell.model}, {_task(cell)}: sampling",
                        _fact(cell.about["sampling"] | {"seed": cell.about["seed"]}),
                    ],
                )
            )
    return Table((), rows, words=2)


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_fact(each)}" for name, each in value.items())
    return str(value)
