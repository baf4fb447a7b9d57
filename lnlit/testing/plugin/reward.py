"""What a completion is worth."""

from __future__ import annotations

from lnlit.interfaces import Reward, RewardRequest


class Example(Reward):
    """Pays 1 for a completion that has a word in it.

    Args:
        word: what to look for, whatever its case.
    """

    def __init__(self, word: str = "please") -> None:
        self.word = word

    def score(self, request: RewardRequest) -> float:
        return float(self.word.lower() in request.completion.lower())
