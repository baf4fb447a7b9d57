"""A reward for a correct result, however it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lnlit.errors import UserError, optional
from lnlit.interfaces import NoVerdictError, Reward, RewardRequest
from lnlit.rewards.final_answer import canonical_answer
from lnlit.thinking import answer_of, last_boxed

if TYPE_CHECKING:
    from lnlit.rewards.equivalence import Answer

#: Texts that stand for a missing answer in data files.
_NO_ANSWER = {"", "n/a", "na", "nan", "none", "null", "unknown", "-", "?"}


class MathAnswerReward(Reward):
    """1 where the answer after the thinking equals the row's, as math-verify compares expressions; else 0. There is no
    verdict where the row has no answer that can be read: null, NaN, "N/A", a list.

    The last `\\boxed{}` with something in it counts, or else the last expression. Where the row's answer is of several
    values, these may stand in boxes of their own. Needs `pip install lnlit[rl]`.

    Args:
        answer_key: Key of the expected answer in the prompt's row.
        time_limit_s: Time limit per completion in seconds, because comparing expressions can take forever.
    """

    def __init__(self, answer_key: str = "answer", time_limit_s: float = 5.0) -> None:
        self.answer_key, self.time_limit_s = answer_key, time_limit_s

    def score(self, request: RewardRequest) -> float:
        if self.answer_key not in request.row:
            self.check_row(request.row)
        gold = _text(request.row[self.answer_key])
        if gold is None:
            raise NoVerdictError("unreadable_gold", self._why(request.row))
        try:
            expected = _expected(gold, "\n".join(str(message["content"]) for message in request.messages))
        except UserError as error:
            raise NoVerdictError("unreadable_gold", f"{self.answer_key}: {error}") from error
        answer = answer_of(request.completion)
        boxed = last_boxed(answer)
        if boxed is None:
            return float(expected.is_in(answer))
        # Of boxes near each other math-verify makes one set, so a box that counts alone must come alone.
        return float(expected.equals(boxed[1]) or (expected.is_of_several_values and expected.is_in(answer)))

    def check_row(self, row: Mapping[str, Any]) -> None:
        if self.answer_key not in row:
            raise UserError(f"the prompt's row has no {self.answer_key!r}; it has {', '.join(row) or 'nothing'}")
        if _text(row[self.answer_key]) is None:
            raise UserError(self._why(row))

    def final_answer(self, completion: str) -> str | None:
        return canonical_answer(completion)

    def warm_up(self, request: RewardRequest) -> None:
        """Compares two answers, which makes math-verify build its parser and SymPy its rules."""
        _expected("[0, 2)", "").equals(r"0 \le x < \frac{4}{2}")

    def _why(self, row: Mapping[str, Any]) -> str:
        return (
            f"{self.answer_key}: {row[self.answer_key]!r:.100} is no answer. One text or number is expected; "
            "several values are written with commas between them."
        )


def _text(value: Any) -> str | None:
    """A row's answer as text, or None if there is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    text = str(value).strip()
    return None if text.lower() in _NO_ANSWER else text


@lru_cache(64)
def _expected(gold: str, question: str) -> Answer:
    optional("math_verify", "rl")
    from lnlit.rewards.equivalence import Answer

    return Answer(gold, question)
