"""MMLU: questions of 57 subjects behind worked examples of the same subject (Hendrycks et al. 2020), with the prompts
of EleutherAI's harness (lm-eval 0.4.13)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from lnlit.data.sources import HuggingFaceSource, naming_row, rows_of
from lnlit.errors import UserError
from lnlit.eval.protocol import in_turn, key_of, read_questions, text_of
from lnlit.eval.tasks.multiple_choice import GOLD, choices_of, first_best, gold_of
from lnlit.interfaces import Continuations, Likelihood, LikelihoodTask, Source

_LETTERS = ("A", "B", "C", "D")
_HUB = "cais/mmlu"


class MMLU(LikelihoodTask):
    """Which of the letters A to D a question is answered by. The examples of a subject are computed once for a batch of
    its questions, so they are fast as long as a subject's rows are together.

    Rows have `subject`, `question`, four `choices` and `answer`, an index or a letter.

    Args:
        source: The questions. By default the test set of `cais/mmlu` on the Hugging Face hub.
        rows: The number of questions, equally many of each subject; all if null.
        examples: The worked examples. By default the dev set of the same.
        shots: The number of examples before each question, the first of its subject.
        subjects: The subjects to ask; all if null.
    """

    def __init__(
        self,
        source: Source | None = None,
        rows: int | None = None,
        examples: Source | None = None,
        shots: int = 5,
        subjects: Sequence[str] | None = None,
    ) -> None:
        if shots < 0:
            raise UserError(f"shots: expected 0 or more, got {shots}.")
        self.source = source or HuggingFaceSource(_HUB, "test", name="all")
        self.examples = examples or HuggingFaceSource(_HUB, "dev", name="all")
        self.rows, self.shots, self.subjects = rows, shots, subjects

    def questions(self) -> Iterator[Continuations]:
        beginnings = self._beginnings()

        def question(row: Mapping[str, Any]) -> Continuations:
            subject = text_of(row, "subject")
            if self.shots and len(beginnings[subject]) < self.shots:
                raise UserError(
                    f"subject: {subject!r} has {len(beginnings[subject])} examples in {self.examples}, not "
                    f"{self.shots}. Give other examples, or fewer shots."
                )
            asked, gold = _asked(row)
            context = "".join([_introduction(subject), *beginnings[subject], asked])
            continuations = [f" {letter}" for letter in _LETTERS]
            return Continuations(key_of(subject, asked), context, continuations, {**row, GOLD: gold}, subject)

        wanted = self.source if self.subjects is None else _Subjects(self.source, self.subjects)
        if self.rows is None:
            return read_questions(wanted, None, question)
        chosen = list(islice(in_turn(read_questions(wanted, None, question)), self.rows))
        place = {subject: number for number, subject in enumerate(dict.fromkeys(each.group for each in chosen))}
        return iter(sorted(chosen, key=lambda each: place[each.group]))  # neighbours share their examples

    def values(self, question: Continuations, likelihoods: Sequence[Likelihood]) -> Mapping[str, float]:
        return {"acc": float(first_best([each.log_prob for each in likelihoods]) == question.row[GOLD])}

    def _beginnings(self) -> Mapping[str, list[str]]:
        """The worked examples of each subject."""
        found: dict[str, list[str]] = defaultdict(list)
        for number, row in enumerate(rows_of(self.examples) if self.shots else ()):
            with naming_row(self.examples, number):
                subject, (asked, gold) = text_of(row, "subject"), _asked(row)
            if len(found[subject]) < self.shots:
                found[subject].append(f"{asked} {_LETTERS[gold]}\n\n")
        return found


class _Subjects(Source):
    """The rows of some subjects."""

    def __init__(self, source: Source, subjects: Sequence[str]) -> None:
        self.source, self.subjects = source, subjects

    def __str__(self) -> str:
        return f"{self.source} ({', '.join(self.subjects)})"

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        return islice((row for row in rows_of(self.source) if row.get("subject") in self.subjects), start, None)


def _introduction(subject: str) -> str:
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def _asked(row: Mapping[str, Any]) -> tuple[str, int]:
    """(question with its choices, index of the right one)."""
    choices = choices_of(row, "choices")
    if len(choices) != len(_LETTERS):
        raise UserError(f"choices: got {len(choices)}; expected {len(_LETTERS)}.")
    lines = [text_of(row, "question").strip()]
    lines += [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)]
    return "\n".join([*lines, "Answer:"]), gold_of(row, "answer", len(choices))
