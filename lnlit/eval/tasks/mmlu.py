"""MMLU: questions of 57 subjects behind worked examples of the same subject (Hendrycks et al. 2020), with the prompts
of EleutherAI's harness (lm-eval 0.4.13)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from lnlit.data.sources import HuggingFaceSource, naming_row, rows_of
from lnlit.errors import UserError
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.benchmark import Benchmark, RowsTask, user
from lnlit.eval.tasks.multiple_choice import GOLD, choices_of, first_best, gold_of
from lnlit.interfaces import Continuations, Likelihood, LikelihoodTask, Question, Reward, Source
from lnlit.rewards.choice import ChoiceReward

_LETTERS = ("A", "B", "C", "D")
_HUB = "cais/mmlu"
_PROMPT = """Answer this multiple-choice question. Think step by step if you need to, and put the letter of the right \
choice into \\boxed{{}}.

{question}

{choices}"""


class MMLU(RowsTask, LikelihoodTask):
    """Which of the letters A to D a question is answered by. The examples of a subject are computed once for a batch of
    its questions, so they are fast as long as a subject's rows are together.

    Rows have `subject`, `question`, four `choices` and `answer`, an index or a letter.

    Args:
        source: The questions. By default the test set of `cais/mmlu` on the Hugging Face hub.
        examples: The worked examples. By default the dev set of the same.
        shots: The number of examples before each question, the first of its subject.
    """

    SORTED_BY_GROUP = True

    def __init__(
        self, source: Source | None = None, rows: int | None = None, examples: Source | None = None, shots: int = 5
    ) -> None:
        if shots < 0:
            raise UserError(f"shots: expected 0 or more, got {shots}.")
        super().__init__(source, rows)
        self.examples, self.shots = examples or HuggingFaceSource(_HUB, "dev", name="all"), shots
        self._worked: Mapping[str, list[str]] = {}

    def public(self) -> Source:
        return HuggingFaceSource(_HUB, "test", name="all")

    def questions(self) -> Iterator[Continuations]:
        self._worked = self._read_examples()
        return super().questions()

    def question(self, row: Mapping[str, Any]) -> Continuations:
        subject = text_of(row, "subject")
        worked = self._worked.get(subject, [])
        if len(worked) < self.shots:
            raise UserError(
                f"subject: {subject!r} has {len(worked)} examples in {self.examples}, not {self.shots}. Give other "
                "examples, or fewer shots."
            )
        asked, gold = _asked(row)
        context = "".join([_introduction(subject), *worked, asked])
        continuations = [f" {letter}" for letter in _LETTERS]
        return Continuations(key_of(subject, asked), context, continuations, {**row, GOLD: gold}, subject)

    def values(self, question: Continuations, likelihoods: Sequence[Likelihood]) -> Mapping[str, float]:
        return {"acc": float(first_best([each.log_prob for each in likelihoods]) == question.row[GOLD])}

    def _read_examples(self) -> Mapping[str, list[str]]:
        """The worked examples of each subject."""
        found: dict[str, list[str]] = defaultdict(list)
        for number, row in enumerate(rows_of(self.examples) if self.shots else ()):
            with naming_row(self.examples, number):
                subject, (asked, gold) = text_of(row, "subject"), _asked(row)
            if len(found[subject]) < self.shots:
                found[subject].append(f"{asked} {_LETTERS[gold]}\n\n")
        return found


class MMLUGenerative(Benchmark):
    """The same questions without examples, of which the model writes the letter that it chooses, grouped by subject.

    Args:
        source: Rows with `question`, `choices`, `answer` (an index from 0 or a letter) and `subject`. By default the
            test set of `cais/mmlu` on the Hugging Face hub.
    """

    SORTED_BY_GROUP = True

    def public(self) -> Source:
        return HuggingFaceSource(_HUB, "test", name="all")

    def question(self, row: Mapping[str, Any]) -> Question:
        question, choices = text_of(row, "question"), choices_of(row, "choices")
        answer = ascii_uppercase[gold_of(row, "answer", len(choices))]
        listed, subject = _listed(choices), str(row.get("subject") or "")
        prompt = _PROMPT.format(question=question, choices=listed)
        return Question(key_of(subject, question, listed), [user(prompt)], {**row, "answer": answer}, subject)

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": ChoiceReward()}


def _introduction(subject: str) -> str:
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def _asked(row: Mapping[str, Any]) -> tuple[str, int]:
    """(question with its choices, index of the right one)."""
    choices = choices_of(row, "choices")
    if len(choices) != len(_LETTERS):
        raise UserError(f"choices: got {len(choices)}; expected {len(_LETTERS)}.")
    lines = [text_of(row, "question").strip(), _listed(choices), "Answer:"]
    return "\n".join(lines), gold_of(row, "answer", len(choices))


def _listed(choices: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
