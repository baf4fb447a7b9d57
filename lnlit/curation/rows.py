"""Rows as datatrove's documents, and the shards that pass between the parts of a pipeline.

A document's `metadata` is the row, its `text` what the row asks or says, and its `id` its place: the row's number in
the source, and for each row that a step made of it a further number. Ids are ordered as the rows are, so the shards of
any number of tasks merge into the same file.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datatrove.data import Document

from lnlit.data.rows import asked
from lnlit.errors import UserError
from lnlit.files import listed, replaced_file
from lnlit.journal import line

Row = dict[str, Any]

#: Keys that common data sets have for a question that is no conversation.
_QUESTIONS = ("problem", "question", "query", "text")


def document(row: Row, place: str) -> Document:
    """A row as a document. Its text is filled in by whoever reads texts."""
    return Document("", place, metadata=row)


def place(number: int, above: str = "") -> str:
    """The id of a row by its number, or of the row of that number among those made of the row `above`."""
    return f"{above}/{number:06d}" if above else f"{number:012d}"


def text_of(row: Mapping[str, Any], column: str | None = None) -> str | None:
    """The text of a column, or without one what the row asks: its conversation without the system prompt and up to the
    answer, or a key such as `problem`. None if there is no such text."""
    if column is not None:
        value = row.get(column)
        return value if isinstance(value, str) and value.strip() else None
    try:
        turns = [str(message["content"]) for message in asked(row).messages if message["role"] != "system"]
        return "\n\n".join(turns) or None
    except UserError:
        named = (row.get(key) for key in _QUESTIONS)
        return next((value for value in named if isinstance(value, str) and value.strip()), None)


def shard(folder: str | Path, rank: int) -> Path:
    """The file of one task's rows."""
    return Path(folder) / f"{rank:05d}.jsonl"


def write_shard(file: Path, documents: Iterable[Document]) -> Iterator[Document]:
    """Writes documents and passes them on. The file is there when all have been written, and not before."""
    with replaced_file(file) as scratch, scratch.open("wb") as stream:
        for each in documents:
            stream.write(line({"id": each.id, "row": each.metadata}))
            yield each


def read_shard(file: Path) -> Generator[Document]:
    """The documents of a shard."""
    with file.open("rb") as stream:
        for text in stream:
            entry = json.loads(text)
            yield document(entry["row"], entry["id"])


def merged(folder: Path) -> Iterator[Document]:
    """The documents of all shards in the order of their ids, one of each shard in memory at a time."""
    with ExitStack() as stack:
        shards = [read_shard(file) for file in listed(folder, "*.jsonl")]
        for each in shards:
            stack.callback(each.close)
        yield from heapq.merge(*shards, key=lambda each: each.id)
