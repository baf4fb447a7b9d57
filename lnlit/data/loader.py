"""Batches from a plan: index-based, resumable, and the same data for every world size.

A checkpoint holds rank 0's state only; so the state here is global (rows done by all ranks together), and every rank
works out its own share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import lightning as L
from torch import Tensor

from lnlit.data.packing import Row
from lnlit.data.plan import Plan, State
from lnlit.errors import UserError
from lnlit.interfaces import PreferenceBatch, TokenBatch

Batch: TypeAlias = TokenBatch | PreferenceBatch


class EvalLoader:
    """One pass over a plan's first epoch each time it is iterated.

    Rank r of W takes rows [r*b, (r+1)*b) of every W*b rows, b being `micro_batch_size`. Where the last group falls
    short, the missing rows are empty, so that all ranks do equally many steps and no data is dropped.
    """

    def __init__(self, plan: Plan, collate: Callable[[Sequence[Row]], Batch], micro_batch_size: int) -> None:
        self.plan = plan
        self.collate = collate
        self.micro_batch_size = micro_batch_size
        self.rank, self.world_size = 0, 1

    def set_rank(self, rank: int, world_size: int) -> None:
        """Sets the data-parallel rank of this process. Must be called before iterating."""
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """The number of this rank's batches per epoch. Raises `TypeError` for a stream, which Lightning then treats as
        unsized."""
        if self.plan.num_rows is None:
            raise TypeError("a stream has no length")
        return -(-self.plan.num_rows // (self.micro_batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self._batches(self.plan.start()))

    def _batches(self, state: State) -> Iterator[tuple[Batch, State]]:
        rows = self.plan.rows(state)
        size = self.micro_batch_size
        while group := list(islice(rows, size * self.world_size)):
            mine = [row for row, _ in group[self.rank * size : (self.rank + 1) * size]]
            yield self.collate(mine + [[]] * (size - len(mine))), group[-1][1]


class TrainLoader(EvalLoader):
    """Continues from its current position: with the next epoch after a finished one, or mid-epoch after
    `load_state_dict`.

    A batch counts as consumed when `mark_consumed` is called or the next one is requested. Lightning fetches a batch
    ahead from an unsized loader, and a checkpoint must neither skip nor repeat it. The batches of an optimizer step
    count together, when `steps_done` has grown: a checkpoint written during an accumulation lacks its gradients.

    Args:
        steps_done: A function that returns how many optimizer steps were done. Without it, each batch counts by itself.
    """

    def __init__(
        self,
        plan: Plan,
        collate: Callable[[Sequence[Row]], Batch],
        micro_batch_size: int,
        steps_done: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(plan, collate, micro_batch_size)
        self._state = plan.start()
        self._steps_done = steps_done
        #: The current step: (steps done before it, the state at its start, its batches so far).
        self._begun: tuple[int, State, int] | None = None
        self._pending: deque[tuple[Batch, State]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        self._pending.clear()
        for batch, state in self._batches(self._state):
            self._pending.append((batch, state))
            yield batch
            self.mark_consumed(batch)

    def mark_consumed(self, batch: Batch) -> None:
        """Notes that training has this batch, which may be a copy as long as it holds the same `tokens` tensor."""
        tokens = _tokens(batch)
        if any(_tokens(pending) is tokens for pending, _ in self._pending):
            if self._steps_done is not None:
                begun = self._under_way()
                self._begun = (*begun[:2], begun[2] + 1)
            while self._pending:
                pending, self._state = self._pending.popleft()
                if _tokens(pending) is tokens:
                    return

    def _under_way(self) -> tuple[int, State, int]:
        done = self._steps_done() if self._steps_done is not None else 0
        return self._begun if self._begun and self._begun[0] == done else (done, dict(self._state), 0)

    def state_dict(self) -> dict[str, Any]:
        """The position at the start of the optimizer step that is under way and, under "again", the number of its
        batches that were already consumed, which a resumed run repeats."""
        _, position, batches = self._under_way()
        return {"position": dict(position), "again": batches, "fingerprint": self.plan.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `UserError` when the state belongs to other data or other settings."""
        if state["fingerprint"] != self.plan.fingerprint:
            raise UserError(
                "data: the checkpoint was made with other data, or another sequence_length, packing, seed or blend, so "
                "its position means nothing here. Resume with the same data settings, or start anew from its weights."
            )
        self._state = dict(state["position"])


def count_batches(trainer: L.Trainer, more: int) -> None:
    """Adds `more`, which may be negative, to Lightning's counts of the micro-batches that a resumed run has done. All
    counts change alike, because in a checkpoint `completed` may be one less than `ready`.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for count in (progress.current, progress.total):
        count.increment_by(more)


def _tokens(batch: Batch) -> Tensor:
    return batch.tokens.tokens if isinstance(batch, PreferenceBatch) else batch.tokens
