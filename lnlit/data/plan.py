"""Plans which documents make up which row of an epoch. Every rank computes the same plan, so nothing is communicated.

A plan's state is a small dict of numbers, the same on every rank and for every world size.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from lnlit.data.blend import BlendEntry, interleave, row_counts
from lnlit.data.chat import Document
from lnlit.data.packing import Layout, Piece, Row

State = dict[str, Any]


class Plan(ABC):
    """An endless sequence of rows in epochs."""

    @abstractmethod
    def start(self) -> State:
        """The state before the first row of the first epoch."""

    @abstractmethod
    def rows(self, state: State) -> Iterator[tuple[Row, State]]:
        """Yields rows from the state on, each with the state after it: to the end of the epoch, or without end for a
        stream."""

    @property
    @abstractmethod
    def num_rows(self) -> int | None:
        """Rows in every epoch, or None for a stream, whose end is not known beforehand."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes when the data or the settings of the plan change, so that an old state is refused."""


class Corpus:
    """The tokenised documents of one source in flat arrays, which may be memory-mapped.

    Args:
        tokens: The tokens of all documents, one after the other, in any integer type.
        lengths: The number of tokens of each document.
        loss_mask: True for tokens to be learned; None for all of them.
        digest: A hash of the tokens, if known.
    """

    def __init__(
        self, tokens: np.ndarray, lengths: np.ndarray, loss_mask: np.ndarray | None = None, digest: str | None = None
    ) -> None:
        self.tokens, self.lengths, self.loss_mask = tokens, lengths, loss_mask
        self.ends = np.cumsum(lengths)
        self._digest = digest

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Corpus:
        """Builds a corpus in memory, which takes 5 bytes per token."""
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        total = int(lengths.sum())
        tokens = np.fromiter((t for d in documents for t in d.tokens), dtype=np.int32, count=total)
        loss_mask = np.fromiter((m for d in documents for m in d.loss_mask), dtype=np.bool_, count=total)
        return cls(tokens, lengths, loss_mask)

    @cached_property
    def digest(self) -> str:
        return self._digest or hashlib.sha256(self.tokens.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        end, length = int(self.ends[index]), int(self.lengths[index])
        span = slice(end - length, end)
        mask = np.ones(length, dtype=np.bool_) if self.loss_mask is None else self.loss_mask[span]
        return Document(self.tokens[span], mask)  # type: ignore[arg-type]


class FirstRows(Plan):
    """The first rows of another plan's first epoch, again and again.

    Args:
        plan: The plan that the rows are taken from.
        count: The number of rows to take; at least 1.
    """

    def __init__(self, plan: Plan, count: int) -> None:
        self.plan, self.count = plan, count

    @property
    def num_rows(self) -> int | None:
        return self.plan.num_rows

    def start(self) -> State:
        return {"row": 0, "of": self.plan.start()}

    def rows(self, state: State) -> Iterator[tuple[Row, State]]:
        while True:
            for row, after in islice(self.plan.rows(state["of"]), self.count - state["row"]):
                state = {"row": state["row"] + 1, "of": after}
                yield row, state if state["row"] < self.count else self.start()
            state = self.start()

    @property
    def fingerprint(self) -> str:
        return f"{self.plan.fingerprint}, the first {self.count} rows"


class _Stage(NamedTuple):
    """One stage of one epoch: document numbers (over all corpora), and rows of pieces, numbered by place in `order`."""

    order: np.ndarray
    rows: Sequence[Sequence[Piece]]


class MapPlan(Plan):
    """A plan of documents that are all tokenised beforehand. Each epoch visits the same documents in another order and
    layout.

    Args:
        stages: The entries of each stage.
        corpora: The documents of these entries, in the same nesting.
        layout: How documents are laid out in rows.
        seed: Seed of every epoch's order. None keeps the order of the sources.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[BlendEntry]],
        corpora: Sequence[Sequence[Corpus]],
        layout: Layout,
        seed: int | None,
    ) -> None:
        self.corpora = [corpus for stage in corpora for corpus in stage]
        self.layout = layout
        self.seed = seed
        self.counts: list[list[int]] = []
        for entries, stage in zip(stages, corpora, strict=True):
            self.counts.append(row_counts(entries, [len(corpus) for corpus in stage]))
        self._lengths = np.concatenate([corpus.lengths for corpus in self.corpora])
        self._planned = (0, self._epoch(0))

    @property
    def num_rows(self) -> int:
        return sum(len(stage.rows) for stage in self._planned[1])

    @property
    def num_tokens(self) -> int:
        """The number of tokens in every epoch, without padding."""
        return int(sum(self._lengths[stage.order].sum() for stage in self._planned[1]))

    def start(self) -> State:
        return {"epoch": 0, "row": 0}

    def rows(self, state: State) -> Iterator[tuple[Row, State]]:
        epoch = state["epoch"]
        if self._planned[0] != epoch:
            self._planned = (epoch, self._epoch(epoch))
        stages, total = self._planned[1], self.num_rows
        for row in range(state["row"], total):
            last = row + 1 == total
            after = {"epoch": epoch + 1, "row": 0} if last else {"epoch": epoch, "row": row + 1}
            yield self._row(stages, row), after

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.layout, self.seed, self.counts)).encode())
        for corpus in self.corpora:
            digest.update(corpus.lengths.tobytes())
            digest.update(corpus.digest.encode())
        return digest.hexdigest()[:16]

    def _row(self, stages: Sequence[_Stage], row: int) -> Row:
        for stage in stages:
            if row < len(stage.rows):
                pieces = stage.rows[row]
                return [self._document(int(stage.order[n])).piece(start, stop) for n, start, stop in pieces]
            row -= len(stage.rows)
        raise IndexError(row)

    def _document(self, index: int) -> Document:
        for corpus in self.corpora:
            if index < len(corpus):
                return corpus[index]
            index -= len(corpus)
        raise IndexError(index)

    def _epoch(self, epoch: int) -> list[_Stage]:
        planned: list[_Stage] = []
        number = offset = 0
        for counts in self.counts:
            drawn = []
            for count in counts:
                size = len(self.corpora[number])
                drawn.append(offset + self._draw(count, size, number, epoch))
                offset += size
                number += 1
            order = np.empty(sum(counts), dtype=np.int64)
            turns = interleave(counts)
            for entry, documents in enumerate(drawn):
                order[turns == entry] = documents
            planned.append(_Stage(order, self.layout.rows(self._lengths[order])))
        return planned

    def _draw(self, count: int, size: int, number: int, epoch: int) -> np.ndarray:
        """`count` documents of one corpus: whole passes, then a part that is the same in every epoch.

        The same documents in every epoch keep the number of packs, and so of optimizer steps, the same.
        """
        passes, rest = divmod(count, size)
        part = np.arange(rest) if self.seed is None else self._rng(number).permutation(size)[:rest]
        pieces = [np.arange(size)] * passes + [part]
        if self.seed is not None:
            rng = self._rng(number, epoch + 1)
            pieces = [rng.permutation(piece) for piece in pieces]
        return np.concatenate(pieces)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed or 0, *key])
