"""Figures of evaluations: of one model on one task in one thinking mode, and of two models question by question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from lnlit.eval.divergence import Divergence
from lnlit.eval.intervals import Mean, mean_difference, mean_of_numbers, mean_of_shares, share_left_out
from lnlit.interfaces import Answer, GenerationTask, GradesAnswer, LikelihoodTask, Question
from lnlit.thinking import Thinking, answer_of, obeys

#: A value from which on an answer counts as right, for pass@k.
_RIGHT = 1 - 1e-9
OBEYS = "obeys the toggle"
#: Resamples of questions for the interval of a figure that is no mean.
_RESAMPLES = 1000


@dataclass(frozen=True)
class Outcome:
    """What came out of one question. `values` are its numbers by name, one for each sample, where None could not be
    judged. `one_value` are numbers of the question as a whole. `answers` has those to each prompt, and is empty if
    nothing was generated."""

    group: str
    values: Mapping[str, Sequence[float | None]]
    one_value: Mapping[str, float] = field(default_factory=dict)
    answers: Sequence[Sequence[Answer]] = ()

    def means(self) -> dict[str, float]:
        """The question's numbers, each the mean of its samples. Those without a verdict are left out."""
        known = {name: [value for value in column if value is not None] for name, column in self.values.items()}
        return {name: fmean(column) for name, column in known.items() if column} | dict(self.one_value)


@dataclass(frozen=True)
class Cell:
    """One model on one task in one thinking mode, which is None for a model or a task without.

    Args:
        outcomes: What came out of each question, by key.
        left_out: The reasons why other questions were not asked, by key.
        totals: Figures of all questions that are no mean over them.
        seconds: Seconds of generating per answer, by an engine that answers many at once; NaN if it is not known.
        about: How the answers were made, for the reader.
    """

    model: str
    task: str
    thinking: Thinking | None
    outcomes: Mapping[str, Outcome]
    left_out: Mapping[str, str] = field(default_factory=dict)
    totals: Mapping[str, Mean] = field(default_factory=dict)
    seconds: float = math.nan
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> list[Answer]:
        return [one for outcome in self.outcomes.values() for samples in outcome.answers for one in samples]

    @property
    def first(self) -> str:
        """The name of the number that the task is about."""
        named = (name for outcome in self.outcomes.values() for name in (*outcome.values, *outcome.one_value))
        return next(named, "")

    def per_question(self, name: str) -> dict[str, float]:
        """One of the numbers by question, the mean of its samples."""
        found = {key: outcome.means() for key, outcome in self.outcomes.items()}
        return {key: means[name] for key, means in found.items() if name in means}


def outcome(
    task: GenerationTask, group: str, answers: Sequence[Sequence[Answer]], thinking: Thinking | None
) -> Outcome:
    """What came out of one question that was answered in a thinking mode."""
    values = dict(task.values(answers))
    whole = _of_votes(task, values, answers)
    if thinking is not None:
        columns = zip(*answers, strict=True)
        there = [[one for one in column if not one.is_missing] for column in columns]
        values[OBEYS] = [fmean(obeys(one.text, thinking) for one in column) if column else None for column in there]
    return Outcome(group, values, whole, answers)


def _of_votes(
    task: GenerationTask, values: Mapping[str, Sequence[float | None]], answers: Sequence[Sequence[Answer]]
) -> dict[str, float]:
    """pass@k of a question's first number for several samples, and maj@k if its reward knows what they can vote on."""
    first = next(iter(values.values()), ())
    known = [value for value in first if value is not None]
    if len(first) < 2 or len(known) < len(first):
        return {}
    found = {f"pass@{k}": pass_at(k, len(known), sum(value >= _RIGHT for value in known)) for k in _powers(len(known))}
    reward = next(iter(task.rewards().values()))
    if len(answers) == 1 and isinstance(reward, GradesAnswer):
        said = [None if one.cut_in_thought else reward.final_answer(one.text) for one in answers[0]]
        found[f"maj@{len(known)}"] = majority(said, known)
    return found


def _powers(samples: int) -> list[int]:
    """2, 4, 8, ... and the number of samples itself."""
    found = [2**power for power in range(1, samples.bit_length()) if 2**power < samples]
    return [*found, samples]


def pass_at(k: int, samples: int, right: int) -> float:
    """The unbiased estimate of the chance that one of `k` answers is right (Chen et al. 2021). Needs `samples` >= k."""
    return 1 - math.prod((samples - right - i) / (samples - i) for i in range(k)) if samples - right >= k else 1.0


def majority(answers: Sequence[str | None], values: Sequence[float]) -> float:
    """The value of the most frequent answer, or the mean of those that are equally frequent. 0 if there is no
    answer."""
    votes = Counter(answer for answer in answers if answer is not None)
    most = max(votes.values(), default=0)
    winners = [answer for answer, count in votes.items() if count == most]
    by_answer = [
        fmean(value for other, value in zip(answers, values, strict=True) if other == answer) for answer in winners
    ]
    return fmean(by_answer) if by_answer else 0.0


# over questions


def figures(cell: Cell) -> dict[str, Mean]:
    """Every number of a cell over its questions, with intervals, by name. The task's own number comes first."""
    names = dict.fromkeys(name for each in cell.outcomes.values() for name in each.means())
    return {name: _over_questions(cell, name, lambda _: True) for name in names}


def by_group(cell: Cell) -> dict[str, Mean]:
    """The task's own number for each group of its questions; empty if they have none."""
    groups = sorted({each.group for each in cell.outcomes.values()} - {""})
    return {group: _over_questions(cell, cell.first, lambda outcome, of=group: outcome.group == of) for group in groups}


def shares(cell: Cell) -> dict[str, Mean]:
    """What became of answers: how many were cut off, cut off in thought, without an answer, or could not be judged."""
    if not cell.answers:
        return {}
    tests: dict[str, Callable[[Answer], bool]] = {
        "truncated": lambda one: one.truncated,
        "cut off in thought": lambda one: one.cut_in_thought,
        "no answer": lambda one: one.cut_in_thought or not answer_of(one.text).strip(),
        "not judged": lambda one: any(result.value is None for result in one.rewards.values()),
    }
    samples = len(cell.answers)
    return {
        name: mean_of_shares(
            [fmean(test(one) for row in each.answers for one in row) for each in cell.outcomes.values()], samples
        )
        for name, test in tests.items()
    }


def _over_questions(cell: Cell, name: str, of: Callable[[Outcome], bool]) -> Mean:
    chosen = [each for each in cell.outcomes.values() if of(each)]
    means = [found[name] for each in chosen if name in (found := each.means())]
    if all(0 <= value <= 1 for value in means):
        samples = sum(len(each.values.get(name, ())) * max(len(each.answers), 1) for each in chosen)
        return mean_of_shares(means, max(samples, len(means)))
    return mean_of_numbers(means)


def totals(task: LikelihoodTask, outcomes: Sequence[Outcome]) -> dict[str, Mean]:
    """The task's figures that are no mean over questions, with intervals from resampled questions."""
    columns: dict[str, list[float]] = {}
    for each in outcomes:
        for name, value in each.one_value.items():
            columns.setdefault(name, []).append(value)
    found, count = task.totals(columns), len(outcomes)
    if not found:
        return {}
    rng, again = np.random.default_rng(0), []
    for chosen in rng.integers(count, size=(_RESAMPLES if count > 1 else 0, count)).tolist():
        again.append(task.totals({name: [column[at] for at in chosen] for name, column in columns.items()}))
    means = {}
    for name, value in found.items():
        resampled = [each[name] for each in again]
        # Between two infinite numbers there is none to interpolate.
        low, high = np.quantile(resampled, (0.025, 0.975), method="nearest").tolist() if again else (None, None)
        means[name] = Mean(value, low, high, count)
    return means


def totals_of_answers(
    task: GenerationTask, questions: Sequence[Question], outcomes: Mapping[str, Outcome]
) -> dict[str, Mean]:
    """The shares of a task that are no mean over questions, with intervals. `outcomes` are by the key of a question."""
    asked = [question for question in questions if question.key in outcomes]
    means = [outcomes[question.key].means() for question in asked]
    found = task.totals(asked, means)
    left_out = [
        task.totals([*asked[:at], *asked[at + 1 :]], [*means[:at], *means[at + 1 :]])
        for at in range(len(asked) if found else 0)
    ]
    return {name: share_left_out(value, [each.get(name, value) for each in left_out]) for name, value in found.items()}


# two cells


@dataclass(frozen=True)
class Flips:
    """The difference of one number between two cells on the questions that both have. `better` and `worse` are how many
    questions have a higher and a lower number."""

    difference: Mean
    better: int
    worse: int


def flips(cell: Cell, other: Cell, name: str) -> Flips | None:
    """How a number differs from the `other` cell's, question by question; None if they share no question."""
    ours, theirs = cell.per_question(name), other.per_question(name)
    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    if not differences:
        return None
    is_share = all(0 <= value <= 1 for side in (ours, theirs) for value in side.values())
    difference = mean_difference(differences) if is_share else mean_of_numbers(differences)
    return Flips(difference, sum(value > 0 for value in differences), sum(value < 0 for value in differences))


# an evaluation


@dataclass(frozen=True)
class Evaluation:
    """All cells of an evaluation, in the order of tables.

    Args:
        models: What is known of each model, by name.
        tasks: The names of the tasks.
        cells: One for each model, task and thinking mode.
        prompts: The first prompt of each question, by task and key.
        against: The model that the others are compared with, or None.
        divergences: The KL divergence of each model from `against`, by model, task and thinking mode.
    """

    models: Mapping[str, Mapping[str, Any]]
    tasks: Sequence[str]
    cells: Sequence[Cell]
    prompts: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    against: str | None = None
    divergences: Mapping[tuple[str, str, Thinking | None], Divergence] = field(default_factory=dict)

    def cell(self, model: str, task: str, thinking: Thinking | None) -> Cell | None:
        wanted = (model, task, thinking)
        return next((each for each in self.cells if (each.model, each.task, each.thinking) == wanted), None)

    @property
    def modes(self) -> Sequence[Thinking | None]:
        """The thinking modes that there are: none, off, on."""
        order: tuple[Thinking | None, ...] = (None, "off", "on")
        return [mode for mode in order if any(each.thinking == mode for each in self.cells)]

    def against_parent(self) -> list[tuple[Cell, str, Flips]]:
        """(cell, name of the number, flips) of every model that is compared with `against`, for each task and mode."""
        found = []
        for cell in self.cells:
            other = None if self.against is None else self.cell(self.against, cell.task, cell.thinking)
            if other is None or cell.model == self.against:
                continue
            for name in figures(cell):
                flip = flips(cell, other, name)
                if flip is not None and (name == cell.first or flip.better or flip.worse):
                    found.append((cell, name, flip))
        return found

    def of_thinking(self) -> list[tuple[Cell, str, Flips]]:
        """(cell with thinking on, name of the number, flips from thinking off) for each model and task."""
        found = []
        for cell in self.cells:
            other = self.cell(cell.model, cell.task, "off") if cell.thinking == "on" else None
            if other is not None and (flip := flips(cell, other, cell.first)):
                found.append((cell, cell.first, flip))
        return found
