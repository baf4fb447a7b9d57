"""The American Invitational Mathematics Examination of 2024 and of 2025."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError
from lnlit.eval.protocol import SamplingProtocol, key_of, text_of
from lnlit.eval.tasks.mathematics import Mathematics
from lnlit.interfaces import Question, Source

#: The paper's protocol, with as many samples as it ever takes: 30 problems are few.
SIXTEEN = SamplingProtocol(samples=16)


class AIME24(Mathematics):
    """The 30 problems of 2024, whose answers are whole numbers below 1000.

    Args:
        source: Rows with `problem` and `answer`, which may be called `expected_answer`. By default
            `HuggingFaceH4/aime_2024` on the Hugging Face hub.
        rows: The number of questions, from the first on; all if null.
        protocol: How answers are sampled.
    """

    def __init__(
        self, source: Source | None = None, rows: int | None = None, protocol: SamplingProtocol = SIXTEEN
    ) -> None:
        super().__init__(source, rows, protocol)

    def public(self) -> Source:
        return HuggingFaceSource("HuggingFaceH4/aime_2024", "train")

    def question(self, row: Mapping[str, Any]) -> Question:
        problem, given = text_of(row, "problem"), row.get("answer", row.get("expected_answer"))
        answer = str(given).strip()
        if not (answer.isascii() and answer.isdecimal()) or int(answer) > 999:
            raise UserError(f"answer: got {given!r:.80}; expected a whole number from 0 to 999.")
        return self.asked(problem, {**row, "answer": str(int(answer))}, key_of(problem))


class AIME25(AIME24):
    """The 30 problems of 2025, whose answers are whole numbers below 1000.

    Args:
        source: Rows with `problem` and `answer`, which may be called `expected_answer`. By default `math-ai/aime25` on
            the Hugging Face hub.
        rows: The number of questions, from the first on; all if null.
        protocol: How answers are sampled.
    """

    def public(self) -> Source:
        return HuggingFaceSource("math-ai/aime25", "test")
