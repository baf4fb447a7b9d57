"""The steps of curation as datatrove's pipeline blocks, which count every row and say why they drop one.

A step changes, drops or multiplies rows one at a time (`each`), in batches (`batch`, for whatever asks a model), or all
rows made of one row together (`group`). It belongs into any pipeline of datatrove, and datatrove's own blocks belong
between ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.typeshelper import StatHints

from lnlit.curation.rows import Row, place
from lnlit.errors import UserError

Documents = Iterable[Document]


@dataclass(frozen=True)
class Dropped:
    """A row that goes no further. `reason` is one word to count it by. With `why`, the row is one that the step cannot
    read, and `strict` stops there."""

    reason: str
    why: str = ""


#: What becomes of a row: it goes on, it is dropped, or several rows (or none, without a reason) are made of it.
Outcome = Row | Dropped | list[Row]


class Counted(PipelineStep, ABC):
    """The base of steps, whose name in the table of counts is that of the class."""

    type = "lnlit"
    #: True if a row that cannot be read is an error. `lnlit curate --strict` sets it.
    strict = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__name__

    @abstractmethod
    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yields the documents that go on."""

    def _arrived(self, count: int = 1) -> None:
        self.stat_update(StatHints.total, value=count)

    def _on(self, document: Document) -> Document:
        self.stat_update(StatHints.forwarded)
        return document

    def _drop(self, dropped: Dropped, place: str) -> None:
        if self.strict and dropped.why:
            raise UserError(f"{self.name}: row {place}: {dropped.why}")
        self.stat_update(StatHints.dropped, f"{StatHints.dropped}_{dropped.reason}")

    def _settle(self, document: Document, outcome: Outcome) -> Iterator[Document]:
        """Counts what becomes of a document, and yields what goes on."""
        if isinstance(outcome, Dropped):
            self._drop(outcome, document.id)
        elif isinstance(outcome, list):
            for number, row in enumerate(outcome):
                yield self._on(Document(document.text, place(number, document.id), metadata=row))
        else:
            document.metadata = outcome
            yield self._on(document)


class Step(Counted):
    """A step that looks at one row at a time."""

    @abstractmethod
    def each(self, row: Row) -> Outcome:
        """What becomes of a row."""

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            self._arrived()
            yield from self._settle(document, self.each(document.metadata))


class BatchStep(Counted):
    """A step that looks at many rows at once, such as one that asks a model.

    Args:
        rows_per_batch: The number of rows that are looked at together.
    """

    def __init__(self, rows_per_batch: int) -> None:
        super().__init__()
        if rows_per_batch < 1:
            raise UserError(f"{self.name}.rows_per_batch: expected a positive number, got {rows_per_batch}")
        self.rows_per_batch = rows_per_batch

    @abstractmethod
    def batch(self, documents: Sequence[Document]) -> Sequence[Outcome]:
        """What becomes of each row."""

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for documents in self._batches(iter(data)):
            self._arrived(len(documents))
            for document, outcome in zip(documents, self.batch(documents), strict=True):
                yield from self._settle(document, outcome)

    def _batches(self, documents: Iterator[Document]) -> Iterator[list[Document]]:
        while batch := list(islice(documents, self.rows_per_batch)):
            yield batch


class GroupStep(Counted):
    """A step that looks at all rows together that an earlier step made of one row, as the solutions of a problem."""

    @abstractmethod
    def group(self, rows: Sequence[Row]) -> Sequence[Row | Dropped]:
        """What becomes of each of these rows."""

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for documents in together(data):
            self._arrived(len(documents))
            outcomes = self.group([document.metadata for document in documents])
            for document, outcome in zip(documents, outcomes, strict=True):
                yield from self._settle(document, outcome)


def together(documents: Documents) -> Iterator[list[Document]]:
    """The documents in lists of those that were made of the same row."""
    for _, group in groupby(documents, key=lambda document: document.id.rpartition("/")[0] or document.id):
        yield list(group)
