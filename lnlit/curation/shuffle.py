"""Rows in an order that has nothing to do with where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document

from lnlit.curation.step import Counted


class Shuffle(Counted):
    """Mixes all rows, for training that reads a file from its beginning to its end. Its place is after the other steps,
    since it forgets which rows were made of the same row.

    The order depends on the seed alone, not on `tasks`. A task holds its share of the rows in memory, which more tasks
    make smaller.

    Args:
        seed: Other seeds, other orders.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        found = []
        for document in data:
            self._arrived()
            document.id = self._place(document.id)
            found.append(document)
        # Shards are merged by id, so that each has to be in the order of the new ones.
        for document in sorted(found, key=lambda each: each.id):
            yield self._on(document)

    def _place(self, place: str) -> str:
        return hashlib.blake2b(f"{self.seed} {place}".encode(), digest_size=16).hexdigest()
