"""Interface `prompt_order`: the order in which a run takes its prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any


class PromptOrder(ABC):
    """An endless sequence of prompt indices, whose state says how far it has been read."""

    @abstractmethod
    def start(self, rows: Sequence[Mapping[str, Any]], seed: int, rollouts: int) -> None:
        """Called once, with the prompts' rows of data, the run's seed, and the number of rollouts that the run will
        take."""

    @abstractmethod
    def take(self, count: int, rollout: int | None = None) -> list[int]:
        """The indices of the next `count` prompts, all different unless there are too few or an epoch ends among them.

        `rollout` is the number of the rollout that they are for, counted from 0; a rollout may call this several times.
        Without it, a call for as many prompts as the first call begins the next rollout, and a call for fewer adds to
        the current one.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
