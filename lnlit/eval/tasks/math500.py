"""MATH-500: problems of competitions (Hendrycks et al. 2021), of those that Lightman et al. 2023 held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.eval.protocol import SamplingProtocol, key_of, text_of
from lnlit.eval.tasks.mathematics import Mathematics
from lnlit.interfaces import Question, Source


class MATH500(Mathematics):
    """Problems whose answer is an expression, grouped by subject.

    Args:
        source: Rows with `problem` and `answer`, perhaps with `subject`, `level` and `unique_id`. By default
            `HuggingFaceH4/MATH-500` on the Hugging Face hub.
        rows: The number of questions, from the first on; all if null.
        protocol: How answers are sampled.
        group_key: The key of a row that says which group it belongs to, such as `subject` or `level`.
    """

    def __init__(
        self,
        source: Source | None = None,
        rows: int | None = None,
        protocol: SamplingProtocol = SamplingProtocol(),
        group_key: str = "subject",
    ) -> None:
        super().__init__(source, rows, protocol)
        self.group_key = group_key

    def public(self) -> Source:
        return HuggingFaceSource("HuggingFaceH4/MATH-500", "test")

    def question(self, row: Mapping[str, Any]) -> Question:
        problem, answer = text_of(row, "problem"), text_of(row, "answer")
        group = row.get(self.group_key)
        return self.asked(problem, {**row, "answer": answer}, key_of(problem), "" if group is None else str(group))
