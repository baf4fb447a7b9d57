"""Reads sources as documents: tokenised, limited in length and counted. Nothing is cut or dropped silently."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lnlit.data.chat import ChatEncoder, Document
from lnlit.data.plan import Corpus
from lnlit.data.rows import conversation
from lnlit.data.sources import naming_row, rows_of, where
from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.interfaces import Source
from lnlit.progress import track

TooLong = Literal["truncate", "drop", "error"]

_CHUNK = 512  # rows tokenised in one call, which spreads them over the cores


@dataclass
class Tally:
    """Counts what happened to rows. `unlearnable` rows were cut before their first learned token and are left out."""

    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    unlearnable: int = 0

    def __str__(self) -> str:
        share = 100 * self.loss_tokens / max(self.tokens, 1)
        parts = [f"{self.rows:,} rows", f"{self.tokens:,} tokens, {self.loss_tokens:,} with loss ({share:.0f} %)"]
        left_out = {"dropped": self.dropped, "unlearnable": self.unlearnable}
        parts += [f"{self.truncated} truncated", *(f"{count} {why}" for why, count in left_out.items() if count)]
        return "; ".join(parts)


class UnreadKeys:
    """Keys of each source that were not read, with the number of rows that have them."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self._told: set[str] = set()

    def add(self, source: Source, keys: Iterable[str]) -> None:
        self.counts.setdefault(str(source), Counter()).update(keys)

    def tell(self, source: Source) -> None:
        """Logs the unread keys, once for each source."""
        from lightning.pytorch.utilities.rank_zero import rank_zero_info

        if str(source) not in self._told and (line := self.of(str(source))):
            rank_zero_info(line)
        self._told.add(str(source))

    def lines(self) -> list[str]:
        """One line for each source with unread keys."""
        return [line for source in self.counts if (line := self.of(source))]

    def of(self, source: str) -> str:
        """A source's unread keys as text, grouped by number of rows; empty if all was read."""
        by_count: dict[int, list[str]] = {}
        for key, count in self.counts.get(source, Counter()).most_common():
            by_count.setdefault(count, []).append(key)
        parts = [f"{', '.join(keys)} ({count:,} row{'s' * (count > 1)})" for count, keys in by_count.items()]
        return f"{source}: keys that nobody reads: {'; '.join(parts)}" if parts else ""


class Reader(ABC):
    """Reads sources as documents; printing its `tally` says what became of the rows, `unread` what nobody read."""

    tally: Any

    def __init__(self) -> None:
        self.unread = UnreadKeys()

    @abstractmethod
    def _documents(self, source: Source, start: int = 0) -> Iterator[Document | None]:
        """One document per row from row `start` on; None for a row that is left out. A bad row is a `UserError`."""

    @abstractmethod
    def corpus(self, source: Source, name: str) -> Corpus:
        """All documents of the source that is called `name` in messages. `UserError` when it has none."""

    def read(self, source: Source, start: int = 0) -> Iterator[Document | None]:
        """Yields what `_documents` yields. Logs the unread keys of the first rows at once, because a stream may never
        end."""
        for number, document in enumerate(self._documents(source, start)):
            if number == 0:
                self.unread.tell(source)
            yield document


class RowReader(Reader):
    """Rows of chats. `encode` makes one document of each; `UserError` for a row that is none."""

    def __init__(self, encode: Callable[[list[dict[str, Any]]], list[Document]]) -> None:
        super().__init__()
        self.encode = encode

    @abstractmethod
    def _held_to_length(self, document: Document, source: Source, index: int) -> Document | None:
        """The document within the length limit, counted; None if it is left out."""

    @abstractmethod
    def _corpus(self, documents: list[Document]) -> Corpus:
        """One or more documents as flat arrays."""

    @abstractmethod
    def _unread(self, row: Mapping[str, Any]) -> Iterable[str]:
        """The keys of a row that are not part of its document."""

    def _documents(self, source: Source, start: int = 0) -> Iterator[Document | None]:
        rows = rows_of(source, start)
        while chunk := list(islice(rows, _CHUNK)):
            documents = self._encode(source, chunk, start)
            for row in chunk:
                self.unread.add(source, self._unread(row))
            for number, document in enumerate(documents):
                yield self._held_to_length(document, source, start + number)
            start += len(chunk)

    def corpus(self, source: Source, name: str) -> Corpus:
        documents = track(self._documents(source), f"tokenising {name}", "row")
        found = [document for document in documents if document is not None]
        self.unread.tell(source)
        if not found:
            raise UserError(f"{name}: no usable row in {source} ({self.tally}). Check too_long and sequence_length.")
        return self._corpus(found)

    def _encode(self, source: Source, rows: list[dict[str, Any]], start: int) -> list[Document]:
        try:
            return self.encode(rows)
        except UserError:
            for number, row in enumerate(rows):  # once more, one by one, to say which row it was
                with naming_row(source, start + number):
                    self.encode([row])
            raise


class DocumentReader(RowReader):
    """Reads documents of at most `sequence_length` tokens."""

    tally: Tally

    def __init__(self, encoder: ChatEncoder, sequence_length: int, too_long: TooLong) -> None:
        super().__init__(encoder.encode_many)
        self.sequence_length, self.too_long, self.tally = sequence_length, too_long, Tally()

    def _corpus(self, documents: list[Document]) -> Corpus:
        return Corpus.of(documents)

    def _unread(self, row: Mapping[str, Any]) -> Iterable[str]:
        return conversation(row).unread

    def _held_to_length(self, document: Document, source: Source, index: int) -> Document | None:
        if len(document) > self.sequence_length:
            if self.too_long == "error":
                raise UserError(
                    f"{where(source, index)}: {len(document)} tokens, and sequence_length is {self.sequence_length}. "
                    "Raise sequence_length, shorten the row, or set too_long to truncate or drop."
                )
            if self.too_long == "drop":
                self.tally.dropped += 1
                return None
            self.tally.truncated += 1
            document = document.piece(0, self.sequence_length)
        if not any(document.loss_mask):
            self.tally.unlearnable += 1
            return None
        self.tally.rows += 1
        self.tally.tokens += len(document)
        self.tally.loss_tokens += sum(document.loss_mask)
        return document


def check_context(sequence_length: int, folder: str | Path) -> None:
    """Raises `UserError` when sequences would be longer than the context of the model in `folder`."""
    config = Path(folder) / "config.json"
    context = read_json(config).get("max_position_embeddings") if config.is_file() else None
    if isinstance(context, int) and sequence_length > context:
        raise UserError(
            f"sequence_length {sequence_length} is longer than the model's context of {context} tokens ({config}). "
            f"Set it to at most {context}."
        )
