"""An order of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import PromptOrder


class Example(PromptOrder):
    """The shortest prompts first, repeated forever."""

    def start(self, rows: Sequence[Mapping[str, Any]], seed: int, rollouts: int) -> None:
        if not rows:
            raise UserError("prompts: the source has no usable rows")
        self.order = sorted(range(len(rows)), key=lambda index: len(str(rows[index])))
        self.taken = 0

    def take(self, count: int, rollout: int | None = None) -> list[int]:
        found = [self.order[at % len(self.order)] for at in range(self.taken, self.taken + count)]
        self.taken += count
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
