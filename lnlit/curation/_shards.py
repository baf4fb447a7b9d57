"""The blocks at the ends of each part of a pipeline: from a source to shards, from shards to shards, from shards to a
file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from lnlit.curation.counts import counted
from lnlit.curation.domains import tally
from lnlit.curation.rows import document, merged, place, read_shard, shard, text_of, write_shard
from lnlit.curation.step import Counted, Dropped
from lnlit.data.sources import readable_rows, where
from lnlit.errors import UserError
from lnlit.files import replaced_file, replaced_folder, write_json
from lnlit.interfaces import Source
from lnlit.journal import line

#: The column that names the source of a row, where there are several.
CATEGORY = "category"


class Read(Counted):
    """Reads all rows of one source, or of several one after the other, and deals them out to the shards of a folder.

    A row that cannot be read or that no JSON file can hold is dropped. Every row keeps its number in the source.

    Args:
        sources: Sources by name. Rows get the name as their `category`, unless they have one or it is empty.
        folder: The folder of shards to write.
        shards: How many there are.
    """

    def __init__(self, sources: Mapping[str, Source], folder: str, shards: int) -> None:
        super().__init__()
        self.sources, self.folder, self.shards = dict(sources), folder, shards

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with replaced_folder(Path(self.folder)) as scratch, ExitStack() as stack:
            files = [stack.enter_context(shard(scratch, number).open("wb")) for number in range(self.shards)]
            for number, (name, source, index, row) in enumerate(self._rows()):
                self._arrived()
                if isinstance(row, UserError):
                    self._drop(Dropped("unreadable", str(row)), str(number))
                    continue
                if name:
                    row = {**row, CATEGORY: row.get(CATEGORY) or name}
                try:
                    text = line({"id": place(number), "row": row})
                except (TypeError, ValueError, RecursionError) as error:  # a date, NaN, half of a character
                    self._drop(Dropped("no_json", f"{where(source, index)}: {error}"), str(number))
                    continue
                files[number % self.shards].write(text)
                self._on(document(row, ""))
        return iter(())

    def _rows(self) -> Iterator[tuple[str, Source, int, dict[str, Any] | UserError]]:
        for name, source in self.sources.items():
            for index, row in readable_rows(source):
                yield name, source, index, row


class ReadShard(PipelineStep):
    """Reads the rows of one task's shard.

    Args:
        folder: The folder of shards.
        text: The column to take the documents' text from; null takes what the row asks. False leaves it empty.
    """

    type, name = "lnlit", "ReadShard"

    def __init__(self, folder: str, text: str | bool | None = False) -> None:
        super().__init__()
        self.folder, self.text = folder, text

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for each in read_shard(shard(self.folder, rank)):
            if not isinstance(self.text, bool):
                each.text = text_of(each.metadata, self.text) or ""
            yield each


class WriteShard(PipelineStep):
    """Writes a task's rows to its shard."""

    type, name = "lnlit", "WriteShard"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from write_shard(shard(self.folder, rank), data)


class Collect(PipelineStep):
    """Writes all rows to one JSONL file, in the order of the source, and the counts of all steps beside it.

    Args:
        folder: The folder of shards.
        out: The file to write.
        told: The file of counts to write.
        logs: The folders in which datatrove keeps the statistics of each part of the pipeline.
        settings: What the counts are of.
    """

    type, name = "lnlit", "Collect"

    def __init__(
        self, folder: str, out: str, told: str, logs: Sequence[str], settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.folder, self.out, self.told, self.logs, self.settings = folder, out, told, list(logs), settings or {}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        domains: Counter[str] = Counter()
        with replaced_file(Path(self.out)) as scratch, scratch.open("wb") as stream:
            for each in merged(Path(self.folder)):
                stream.write(line(each.metadata))
                domains[tally(each.metadata)] += 1
            stream.flush()
            os.fsync(stream.fileno())
        steps = [asdict(count) for count in counted(map(Path, self.logs))]
        write_json(Path(self.told), {"steps": steps, "domains": dict(domains), "settings": self.settings})
        return iter(())


def read_counts(file: Path) -> dict[str, Any] | None:
    """What `Collect` wrote beside its output, or None."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "steps" in found else None
