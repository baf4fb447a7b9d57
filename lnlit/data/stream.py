"""The plan of a stream, which reads rows when they are needed, a window of documents at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice

import numpy as np

from lnlit.data.blend import BlendEntry, next_source
from lnlit.data.chat import Document
from lnlit.data.packing import Layout, Row
from lnlit.data.plan import Plan, State
from lnlit.errors import UserError

#: (entry, start) -> the documents of the entry's source from row `start` on, None for a row that is left out.
Reader = Callable[[BlendEntry, int], Iterator[Document | None]]


class StreamPlan(Plan):
    """Lays out and shuffles one window of documents at a time; memory holds one window. After the last row the next
    epoch begins: a trainer sees no end, and stops by its number of steps.

    The state is where the current window began in each source, and how many of its rows are done: resuming reads that
    window again. Every rank reads the whole stream and keeps its own rows.

    Args:
        stages: The entries of each stage.
        read: How to get an entry's documents.
        layout: How a window's documents become rows.
        seed: Seeds each window's order; None keeps the order of the stream.
        window: Documents per window; more fill rows better and shuffle better.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[BlendEntry]],
        read: Reader,
        layout: Layout,
        seed: int | None,
        window: int,
    ) -> None:
        self.stages = stages
        self.read = read
        self.layout = layout
        self.seed = seed
        self.window = window
        for stage in stages:
            if len(stage) > 1 and any(entry.weight is None and entry.rows is None for entry in stage):
                place = f"train, stage {stage[0].stage}"
                raise UserError(f"{place}: the size of streamed sources is unknown, so each needs weight or rows")

    @property
    def num_rows(self) -> None:
        return None

    @cached_property
    def fingerprint(self) -> str:
        amounts = [[(e.weight, e.rows, e.epochs, str(e.source)) for e in stage] for stage in self.stages]
        settings = repr((self.layout, self.seed, self.window, amounts))
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def start(self) -> State:
        return self._at(epoch=0, stage=0)

    def rows(self, state: State) -> Iterator[tuple[Row, State]]:
        while True:
            yield from self._epoch(state)
            state = self._at(state["epoch"] + 1, stage=0)

    def _epoch(self, state: State) -> Iterator[tuple[Row, State]]:
        while state["stage"] < len(self.stages):
            for documents, before, after in self._windows(state):
                packs = self._pack(documents, before)
                for done in range(before["done"], len(packs)):
                    last = done + 1 == len(packs)
                    yield packs[done], after if last else {**before, "done": done + 1}
            state = self._at(state["epoch"], state["stage"] + 1)

    def _at(self, epoch: int, stage: int) -> State:
        """The state at the beginning of a stage. `cursors` are (pass, row) and `taken` the rows kept, per entry."""
        entries = len(self.stages[stage]) if stage < len(self.stages) else 0
        cursors = [[0, 0] for _ in range(entries)]
        return {"epoch": epoch, "stage": stage, "window": 0, "done": 0, "taken": [0] * entries, "cursors": cursors}

    def _windows(self, before: State) -> Iterator[tuple[list[Document], State, State]]:
        """The windows of the state's stage from there on, each with the states before and after it."""
        taken = list(before["taken"])
        cursors = [list(cursor) for cursor in before["cursors"]]
        documents = self._documents(self.stages[before["stage"]], taken, cursors)
        while window := list(islice(documents, self.window)):
            after: State = {
                **before,
                "window": before["window"] + 1,
                "done": 0,
                "taken": list(taken),
                "cursors": [list(cursor) for cursor in cursors],
            }
            yield window, before, after
            before = after

    def _documents(
        self, entries: Sequence[BlendEntry], taken: list[int], cursors: list[list[int]]
    ) -> Iterator[Document]:
        """One stage's documents in blended order; keeps `taken` and `cursors` up to date."""
        shares = [entry.weight or entry.rows or 1 for entry in entries]
        readers = [self._entry(entry, cursor) for entry, cursor in zip(entries, cursors, strict=True)]
        while any(entry.rows is None or count < entry.rows for entry, count in zip(entries, taken, strict=True)):
            number = next_source(taken, shares)
            document = next(readers[number], None)
            if document is None:
                return
            taken[number] += 1
            yield document

    def _entry(self, entry: BlendEntry, cursor: list[int]) -> Iterator[Document]:
        """An entry's documents from its cursor on; with `rows` the source starts over as often as needed."""
        while entry.rows is not None or cursor[0] < (entry.epochs or 1):
            empty = cursor[1] == 0
            for document in self.read(entry, cursor[1]):
                cursor[1] += 1
                if document is not None:
                    empty = False
                    yield document
            if empty:
                raise UserError(f"train: {entry.source} has no usable rows")
            cursor[:] = [cursor[0] + 1, 0]

    def _pack(self, documents: list[Document], state: State) -> list[Row]:
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, state["epoch"], state["stage"], state["window"]])
            documents = [documents[i] for i in rng.permutation(len(documents))]
        rows = self.layout.rows(np.array([len(document) for document in documents]))
        return [[documents[number].piece(start, stop) for number, start, stop in row] for row in rows]
