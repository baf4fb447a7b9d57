"""What Lightning iterates over while a policy learns from `Experience`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lnlit.modules.experience import Experience


class ExperienceLoader:
    """Micro-batches, a rollout at a time: a new one begins when the last one is used up.

    It has a length, because Lightning reads one batch ahead of loaders without: the next rollout would come from the
    weights before the last update.
    """

    def __init__(self, data: Experience, micro_batches: int) -> None:
        self.data, self.micro_batches = data, micro_batches

    def __len__(self) -> int:
        return self.micro_batches

    def __iter__(self) -> Iterator[Any]:
        while True:
            if not self.data.pending:
                self.data.collect()
            update = self.data.pending.popleft()
            self.data.begun = self.data.policy.global_step, update
            yield from self.data.batches(update)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the state, as Lightning drops a loader's at the end of an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""


class HeldOutLoader:
    """One batch: what an evaluation found."""

    def __init__(self, data: Experience) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Mapping[str, float]]:
        yield self.data.evaluate()
