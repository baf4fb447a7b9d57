"""The order in which a run takes its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lnlit.errors import UserError
from lnlit.interfaces import PromptOrder


class Uniform(PromptOrder):
    """Every prompt once per epoch, in a new random order each epoch."""

    def start(self, rows: Sequence[Mapping[str, Any]], seed: int, rollouts: int) -> None:
        if not rows:
            raise UserError("prompts: the source has no usable rows")
        self.prompts, self.seed, self.taken = len(rows), seed, 0

    def take(self, count: int, rollout: int | None = None) -> list[int]:
        found: list[int] = []
        while len(found) < count:
            epoch, done = divmod(self.taken, self.prompts)
            order = np.random.default_rng([self.seed, epoch]).permutation(self.prompts)
            part = order[done : done + count - len(found)].tolist()
            found += part
            self.taken += len(part)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "prompts": self.prompts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["prompts"] != self.prompts:
            raise UserError(
                f"prompts: the run was begun with {state['prompts']} prompts, now there are {self.prompts}. Go on with "
                "the same prompts, or begin a new run."
            )
        self.taken = state["taken"]
