"""Multiple-choice questions as token rows, with one row for each question and continuation.

Shape suffixes: R rows (one per continuation), T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import IGNORE, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Choices:
    """Encoded questions. `labels_RT` holds the continuation's tokens at the positions that predict them, `IGNORE`
    elsewhere. `question[r]` is the question of row r, `right[q]` the row of the correct answer to question q, and
    `size_R` the continuations' lengths in bytes."""

    tokens_RT: Tensor
    labels_RT: Tensor
    question: tuple[int, ...]
    right: tuple[int, ...]
    size_R: Tensor


@dataclass(frozen=True)
class Questions:
    """Multiple-choice questions, one per row.

    Args:
        source: The source of the rows.
        rows: The number of questions, from the first on.
        context_key: The key of a row that holds the text in front of the choices.
        choices_key: The key that holds the list of continuations.
        answer_key: The key that holds the correct choice: its index from 0, or a letter from A.
    """

    source: Source
    rows: int = 200
    context_key: str = "context"
    choices_key: str = "choices"
    answer_key: str = "answer"

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> Choices:
        """Encodes the questions. Raises `UserError` naming a row that lacks a key or whose answer is none of its
        choices."""
        rows, question, right = [], [], []
        for number, row in enumerate(islice(self.source.rows(), self.rows)):
            context, choices, answer = self._read(row, number)
            front = tokenizer(context)["input_ids"]
            right.append(len(rows) + answer)
            for choice in choices:
                text = " " + choice.lstrip()
                rows.append((front, tokenizer(text, add_special_tokens=False)["input_ids"], len(text.encode())))
                question.append(number)
        if not rows:
            raise UserError(f"questions: {self.source} has no rows.")
        length = max(len(front) + len(back) - 1 for front, back, _ in rows)
        tokens_RT = torch.zeros(len(rows), length, dtype=torch.int64)
        labels_RT = torch.full_like(tokens_RT, IGNORE)
        for index, (front, back, _) in enumerate(rows):
            whole = torch.tensor([*front, *back])
            tokens_RT[index, : len(whole) - 1] = whole[:-1]
            labels_RT[index, len(front) - 1 : len(whole) - 1] = whole[len(front) :]
        size_R = torch.tensor([size for _, _, size in rows], dtype=torch.float64)
        return Choices(tokens_RT, labels_RT, tuple(question), tuple(right), size_R)

    def _read(self, row: Mapping[str, Any], number: int) -> tuple[str, list[str], int]:
        where = f"{self.source}: question {number + 1}"
        for key in (self.context_key, self.choices_key, self.answer_key):
            if key not in row:
                raise UserError(f"{where}: no key {key!r}; it has: {', '.join(row)}. Name the keys of the rows.")
        context, choices, answer = row[self.context_key], row[self.choices_key], row[self.answer_key]
        texts = isinstance(choices, list) and all(isinstance(text, str) for text in (context, *choices))
        if not texts:
            raise UserError(f"{where}: {self.context_key!r} must be text and {self.choices_key!r} a list of texts.")
        if not context:
            raise UserError(f"{where}: {self.context_key!r} is empty; the choices need text in front of them.")
        if isinstance(answer, str) and len(answer) == 1 and answer.isalpha():
            answer = ord(answer.upper()) - ord("A")
        if not str(answer).isdigit() or int(answer) >= len(choices):
            raise UserError(f"{where}: the answer {row[self.answer_key]!r} is none of its {len(choices)} choices.")
        return context, choices, int(answer)
