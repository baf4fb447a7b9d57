"""Multiple-choice questions whose likeliest choice is the model's answer, with the prompts and figures of EleutherAI's
harness (lm-eval 0.4.13)."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.benchmark import RowsTask
from lnlit.interfaces import Continuations, Likelihood, LikelihoodTask, Source

#: The key of a question's row that holds the index of its right choice.
GOLD = "gold"
_BRACKETS = re.compile(r"\[.*?\]")


@dataclass(frozen=True)
class Choices:
    """A text, what may follow it, and the index of the right one."""

    context: str
    choices: Sequence[str]
    gold: int


class MultipleChoiceTask(RowsTask, LikelihoodTask):
    """The base class. `acc` counts the questions whose likeliest choice is right, `acc_norm` those whose likeliest
    choice per character is.

    Rows have the columns of the data set on the Hugging Face hub, or are ready to be asked: `query`, a list `choices`
    and `gold`, the index of the right one, as in the files of llm-foundry's gauntlet.
    """

    @abstractmethod
    def read(self, row: Mapping[str, Any]) -> Choices:
        """The question of a row."""

    def question(self, row: Mapping[str, Any]) -> Continuations:
        asked = self.read(row)
        continuations = [f" {choice}" for choice in asked.choices]
        key = key_of(asked.context, *continuations)
        return Continuations(key, asked.context, continuations, {**row, GOLD: asked.gold})

    def values(self, question: Continuations, likelihoods: Sequence[Likelihood]) -> Mapping[str, float]:
        # A choice stands behind one space, which is not counted.
        lengths = [len(text) - 1 for text in question.continuations]
        log_probs = [each.log_prob for each in likelihoods]
        per_character = [
            total / length if length else -math.inf for total, length in zip(log_probs, lengths, strict=True)
        ]
        gold = question.row[GOLD]
        return {"acc": float(first_best(log_probs) == gold), "acc_norm": float(first_best(per_character) == gold)}


def first_best(values: Sequence[float]) -> int:
    """The index of the largest value, the first of equal ones."""
    return max(range(len(values)), key=lambda index: (values[index], -index))


class MultipleChoice(MultipleChoiceTask):
    """Questions of one's own.

    Args:
        context_key: The key of a row that holds the text in front of the choices.
        choices_key: The key that holds the list of choices, which are joined to the text by a space.
        answer_key: The key that holds the right choice: its index from 0, or a letter from A.
    """

    def __init__(
        self,
        source: Source | None = None,
        rows: int | None = None,
        context_key: str = "context",
        choices_key: str = "choices",
        answer_key: str = "answer",
    ) -> None:
        super().__init__(source, rows)
        self.context_key, self.choices_key, self.answer_key = context_key, choices_key, answer_key

    def read(self, row: Mapping[str, Any]) -> Choices:
        choices = choices_of(row, self.choices_key)
        return Choices(text_of(row, self.context_key), choices, gold_of(row, self.answer_key, len(choices)))


class HellaSwag(MultipleChoiceTask):
    """Which of four endings continues a scene (Zellers et al. 2019)."""

    def public(self) -> Source:
        return HuggingFaceSource("Rowan/hellaswag", "validation")

    def read(self, row: Mapping[str, Any]) -> Choices:
        if "ctx_a" in row:
            # The hub's second half of a scene may be empty.
            context = (
                f"{text_of(row, 'activity_label')}: {text_of(row, 'ctx_a')} {str(row.get('ctx_b', '')).capitalize()}"
            )
        else:
            context = text_of(row, "ctx")
        endings = [_without_brackets(ending) for ending in choices_of(row, "endings")]
        return Choices(_without_brackets(context), endings, gold_of(row, "label", len(endings)))


def _without_brackets(text: str) -> str:
    """Without the marks of WikiHow, where half of HellaSwag is from."""
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", text).replace("  ", " ")


class ARCEasy(MultipleChoiceTask):
    """Science questions of school examinations that are easy for retrieval (Clark et al. 2018)."""

    subset = "ARC-Easy"

    def public(self) -> Source:
        return HuggingFaceSource("allenai/ai2_arc", "test", name=self.subset)

    def read(self, row: Mapping[str, Any]) -> Choices:
        if ready(row):
            return _asked(row)
        choices, gold = _labelled(row)
        return Choices(f"Question: {text_of(row, 'question')}\nAnswer:", choices, gold)


class ARCChallenge(ARCEasy):
    """Science questions of school examinations that retrieval answers wrongly (Clark et al. 2018)."""

    subset = "ARC-Challenge"


class OpenBookQA(MultipleChoiceTask):
    """Questions on elementary science that take a fact and common sense (Mihaylov et al. 2018)."""

    def public(self) -> Source:
        return HuggingFaceSource("allenai/openbookqa", "test", name="main")

    def read(self, row: Mapping[str, Any]) -> Choices:
        if ready(row):
            choices = choices_of(row, "choices")
            return Choices(text_of(row, "query"), choices, gold_of(row, GOLD, len(choices)))
        return Choices(text_of(row, "question_stem"), *_labelled(row))


class PIQA(MultipleChoiceTask):
    """Which of two ways reaches a physical goal (Bisk et al. 2020)."""

    def public(self) -> Source:
        return HuggingFaceSource("baber/piqa", "validation")

    def read(self, row: Mapping[str, Any]) -> Choices:
        if ready(row):
            return _asked(row)
        choices = [text_of(row, "sol1"), text_of(row, "sol2")]
        return Choices(f"Question: {text_of(row, 'goal')}\nAnswer:", choices, gold_of(row, "label", 2))


def ready(row: Mapping[str, Any]) -> bool:
    """True if a row is ready to be asked, as those of llm-foundry's gauntlet are."""
    return "query" in row


def _asked(row: Mapping[str, Any]) -> Choices:
    """A row that is ready, up to the word that introduces the answer."""
    choices = choices_of(row, "choices")
    return Choices(f"{text_of(row, 'query').rstrip()}\nAnswer:", choices, gold_of(row, GOLD, len(choices)))


def _labelled(row: Mapping[str, Any]) -> tuple[list[str], int]:
    """(choices, index of the right one) of a row of `choices: {text: [...], label: [...]}` and `answerKey`."""
    choices, answer = row.get("choices"), str(row.get("answerKey", "")).strip()
    if not isinstance(choices, Mapping) or "label" not in choices:
        raise UserError(f"choices: got {choices!r:.80}; expected {{text: [...], label: [...]}}.")
    texts = choices_of(choices, "text")
    labels = [str(label) for label in choices["label"]]
    if answer not in labels or len(labels) != len(texts):
        raise UserError(f"answerKey: got {answer!r}; expected one of the labels {', '.join(labels)}.")
    return texts, labels.index(answer)


def choices_of(row: Mapping[str, Any], key: str) -> list[str]:
    """The list of texts under a key. Raises `UserError` if it is no such list."""
    choices = row.get(key)
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not all(isinstance(c, str) for c in choices):
        raise UserError(
            f"{key}: got {choices!r:.80}; expected a list of texts. The row has: {', '.join(map(str, row))}."
        )
    if len(choices) < 2:
        raise UserError(f"{key}: got {len(choices)} choices; expected at least 2.")
    return list(choices)


def gold_of(row: Mapping[str, Any], key: str, count: int) -> int:
    """The index of the right choice under a key: a number from 0, or a letter from A. Raises `UserError` if it is none
    of the choices."""
    given = row.get(key)
    gold = ord(given.upper()) - ord("A") if isinstance(given, str) and given.isalpha() and len(given) == 1 else given
    if isinstance(gold, bool) or not str(gold).isascii() or not str(gold).isdigit() or int(str(gold)) >= count:
        raise UserError(f"{key}: got {given!r:.80}; expected the index of one of {count} choices, or its letter.")
    return int(str(gold))
