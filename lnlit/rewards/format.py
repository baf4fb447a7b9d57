"""A reward for thinking exactly when asked to."""

from __future__ import annotations

from lnlit.interfaces import Reward, RewardRequest
from lnlit.thinking import Thinking, mode, obeys, on_or_off


class FormatReward(Reward):
    """The reward is 1 if the completion obeys the thinking toggle, else 0 (Llama-Nemotron section 5).

    "On" asks for one `<think>...</think>` with an answer after it; "off" forbids both tags.

    Args:
        thinking: The mode for prompts without a toggle. With null, they get no reward.
    """

    def __init__(self, thinking: Thinking | bool | None = None) -> None:
        self.thinking = None if thinking is None else on_or_off(thinking)

    def score(self, request: RewardRequest) -> float | None:
        asked = mode(request.messages) or self.thinking
        return None if asked is None else float(obeys(request.completion, asked))
