"""Socket `prompt_order`: in which order a run takes its prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any


class PromptOrder(ABC):
    """Indices of prompts, as many as asked for, without end. Its state says where it is."""

    @abstractmethod
    def start(self, rows: Sequence[Mapping[str, Any]], seed: int, rollouts: int) -> None:
        """Called once: the prompts' rows of data, the run's seed, and how many rollouts the run will take."""

    @abstractmethod
    def take(self, count: int, rollout: int | None = None) -> list[int]:
        """The next `count` prompts, none of them twice unless there are too few or an epoch ends among them.

        `rollout` is what they are for, counted from 0; several calls may be for one. Where it is not given, each call
        for as many as the first begins the next rollout, and one for fewer adds to the last.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
