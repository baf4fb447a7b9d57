"""Pays for thinking when asked to, and only then."""

from __future__ import annotations

from lnlit.interfaces import Reward, RewardRequest
from lnlit.thinking import Thinking, mode, obeys, on_or_off


class FormatReward(Reward):
    """1 where the completion obeys the thinking toggle, else 0 (Llama-Nemotron section 5).

    On asks for one `<think>...</think>` and an answer after it; off forbids both tags.

    Args:
        thinking: what prompts without a toggle ask for; null gives them no reward.
    """

    def __init__(self, thinking: Thinking | bool | None = None) -> None:
        self.thinking = None if thinking is None else on_or_off(thinking)

    def score(self, request: RewardRequest) -> float | None:
        asked = mode(request.messages) or self.thinking
        return None if asked is None else float(obeys(request.completion, asked))
