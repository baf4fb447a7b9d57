"""Which documents make up which row of an epoch. Every rank computes the same plan, so nothing is communicated.

A plan's state is a small dict of numbers, the same on every rank and for every world size.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lnlit.data.blend import BlendEntry, interleave, row_counts
from lnlit.data.chat import Document
from lnlit.data.packing import Row, pack_best_fit

State = dict[str, Any]


class Plan(ABC):
    """An endless sequence of rows in epochs."""

    @abstractmethod
    def start(self) -> State:
        """The state before the first row of the first epoch."""

    @abstractmethod
    def rows(self, state: State) -> Iterator[tuple[Row, State]]:
        """Rows from the state on, each with the state after it: to the epoch's end, or without end for a stream."""

    @property
    @abstractmethod
    def num_rows(self) -> int | None:
        """Rows in every epoch, or None for a stream, whose end is not known beforehand."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the data or the settings behind the plan change, so that an old state is refused."""


class Corpus:
    """Tokenised documents of one source in flat arrays: 5 bytes a token."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.lengths = np.array([len(document) for document in documents], dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        total = int(self.lengths.sum())
        self.tokens = np.fromiter((t for d in documents for t in d.tokens), dtype=np.int32, count=total)
        self.loss_mask = np.fromiter((m for d in documents for m in d.loss_mask), dtype=np.bool_, count=total)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        end = int(self.ends[index])
        span = slice(end - int(self.lengths[index]), end)
        return Document(self.tokens[span], self.loss_mask[span])  # type: ignore[arg-type]


class MapPlan(Plan):
    """Everything tokenised beforehand. Each epoch visits the same documents in another order, packed anew.

    Args:
        stages: the entries of each stage.
        corpora: their documents, in the same nesting.
        capacity: tokens per packed row, or None for one document per row.
        seed: seeds every epoch's order; None keeps the order of the sources.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[BlendEntry]],
        corpora: Sequence[Sequence[Corpus]],
        capacity: int | None,
        seed: int | None,
    ) -> None:
        self.corpora = [corpus for stage in corpora for corpus in stage]
        self.capacity = capacity
        self.seed = seed
        self.counts: list[list[int]] = []
        for entries, stage in zip(stages, corpora, strict=True):
            self.counts.append(row_counts(entries, [len(corpus) for corpus in stage]))
        self._lengths = np.concatenate([corpus.lengths for corpus in self.corpora])
        self._planned: tuple[int, list[list[int]]] = (0, self._epoch(0))

    @property
    def num_rows(self) -> int:
        return len(self._planned[1])

    @property
    def num_tokens(self) -> int:
        """Tokens in every epoch, padding not counted."""
        return int(sum(self._lengths[index] for pack in self._planned[1] for index in pack))

    def start(self) -> State:
        return {"epoch": 0, "row": 0}

    def rows(self, state: State) -> Iterator[tuple[Row, State]]:
        epoch = state["epoch"]
        if self._planned[0] != epoch:
            self._planned = (epoch, self._epoch(epoch))
        packs = self._planned[1]
        for row in range(state["row"], len(packs)):
            last = row + 1 == len(packs)
            after = {"epoch": epoch + 1, "row": 0} if last else {"epoch": epoch, "row": row + 1}
            yield [self._document(index) for index in packs[row]], after

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.capacity, self.seed, self.counts)).encode())
        for corpus in self.corpora:
            digest.update(corpus.lengths.tobytes())
            digest.update(corpus.tokens.tobytes())
        return digest.hexdigest()[:16]

    def _document(self, index: int) -> Document:
        for corpus in self.corpora:
            if index < len(corpus):
                return corpus[index]
            index -= len(corpus)
        raise IndexError(index)

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Document numbers (over all corpora) of each row."""
        packs: list[list[int]] = []
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
            if self.capacity is None:
                packs += [[index] for index in order.tolist()]
            else:
                lengths = self._lengths[order].tolist()
                packs += [[int(order[i]) for i in pack] for pack in pack_best_fit(lengths, self.capacity)]
        return packs

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
