"""A reward for completions."""

from __future__ import annotations

from lnlit.interfaces import Reward, RewardRequest


class Example(Reward):
    """The reward is 1 if the completion contains a word, else 0.

    Args:
        word: The word to look for, in upper or lower case.
    """

    def __init__(self, word: str = "please") -> None:
        self.word = word

    def score(self, request: RewardRequest) -> float:
        return float(self.word.lower() in request.completion.lower())
