"""GSM8K: word problems of grade-school mathematics (Cobbe et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.mathematics import Mathematics
from lnlit.interfaces import Question, Source

_BEFORE_THE_ANSWER = "####"


class GSM8K(Mathematics):
    """Word problems whose answer is a number.

    Args:
        source: Rows with `question` and `answer`, whose last line is `#### NUMBER`. By default the test set of
            `openai/gsm8k` on the Hugging Face hub.
        rows: The number of questions, from the first on; all if null.
        protocol: How answers are sampled.
    """

    def public(self) -> Source:
        return HuggingFaceSource("openai/gsm8k", "test", name="main")

    def question(self, row: Mapping[str, Any]) -> Question:
        text, solution = text_of(row, "question"), text_of(row, "answer")
        _, mark, answer = solution.rpartition(_BEFORE_THE_ANSWER)
        if not mark or not answer.strip():
            raise UserError(
                f"answer: got {solution[-60:]!r}; expected a solution that ends in `{_BEFORE_THE_ANSWER} 18`."
            )
        return self.asked(text, {**row, "answer": answer.strip().replace(",", "")}, key_of(text))
