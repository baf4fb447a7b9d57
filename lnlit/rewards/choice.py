"""A reward for the right letter of a multiple-choice question."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import Reward, RewardRequest
from lnlit.thinking import answer_of, last_boxed

#: What may stand in front of a letter: brackets, quotes, emphasis, and LaTeX for words.
_BEFORE = r"(?:\\(?:text|textbf|mathbf|mathrm|boxed)\s*\{|[\s*_()\[\"'`$:])*+"
_AFTER = r"(?![A-Za-z0-9'])"
_IN_A_BOX = re.compile(rf"{_BEFORE}([A-Za-z]){_AFTER}")
#: "A good one" and "I think" are no choices, but "A because" is.
_NO_WORD = r"(?!(?<=[AI]) (?!(?:is|as|and|since|because|which|so|with)\b)[a-z])"
_SAID = re.compile(
    rf"(?i:\b(?:answer|choice|option)\b(?:[\s:*]*+(?:is|would be|must be)\b)?+){_BEFORE}([A-Z]){_AFTER}{_NO_WORD}"
)
_ALONE = re.compile(r"^[^\w\n]*+([A-Z])(?:[^\w\n]*|[.):]\s.*)$", re.MULTILINE)


class ChoiceReward(Reward):
    r"""1 where the answer after the thinking chooses the row's letter, else 0.

    The last `\boxed{}` counts, where `B`, `(B)` and `B. seven` are all B. Without a box, what is said last counts, as
    in "the answer is B", or else a letter that stands alone or in front of one choice.

    Args:
        answer_key: The key of the right letter in the prompt's row.
    """

    def __init__(self, answer_key: str = "answer") -> None:
        self.answer_key = answer_key

    def score(self, request: RewardRequest) -> float:
        self.check_row(request.row)
        return float(chosen(request.completion) == request.row[self.answer_key])

    def final_answer(self, completion: str) -> str | None:
        return chosen(completion)

    def check_row(self, row: Mapping[str, Any]) -> None:
        answer = row.get(self.answer_key)
        if not isinstance(answer, str) or not re.fullmatch("[A-Z]", answer):
            raise UserError(f"choice: the row's {self.answer_key} must be a letter from A to Z, got {answer!r:.80}")


def chosen(text: str) -> str | None:
    """The letter that a completion chooses, or None if it chooses none."""
    answer = answer_of(text)
    if boxed := last_boxed(answer):
        found = _IN_A_BOX.match(boxed[1])
        return found[1].upper() if found else None
    said = _SAID.findall(answer)
    if said:
        return said[-1]
    alone = {*_ALONE.findall(answer)}
    return alone.pop() if len(alone) == 1 else None
