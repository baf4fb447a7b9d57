"""Socket `reward`: says how good completions are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RewardRequest:
    """A completion to judge. `row` is the prompt's row of data, its answer included; `completion` the text without
    special tokens; `truncated` says that it ended for want of room."""

    messages: Sequence[Mapping[str, str]]
    completion: str
    truncated: bool
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardResult:
    """`value` None means that no judgement was possible, for the reason in `error`: the sample then counts for nothing,
    which is not the same as a reward of 0."""

    value: float | None
    error: str | None = None


class Reward(ABC):
    """A reward is plain data and code that can be sent to another process, where it may be stopped at any time."""

    #: Seconds that one completion may take.
    time_limit_s: float = 10.0

    @abstractmethod
    def score(self, request: RewardRequest) -> float | None:
        """The reward of one completion; None where there is none to give. An exception or a time-out is noted and
        counts as none."""


class BatchReward(Reward):
    """A model or a service: judges many completions at once, in the trainer's own process and on its own time.

    It keeps what it needs between calls, and must end by itself: nobody stops it.
    """

    @abstractmethod
    def score_batch(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """One result per request, in their order."""

    def score(self, request: RewardRequest) -> float | None:
        return self.score_batch([request])[0].value

    def close(self) -> None:
        """Give memory and connections back. May be called twice."""
