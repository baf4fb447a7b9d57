"""A blend of domains in given shares, by default those of Llama-Nemotron's table 2."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from math import floor, isfinite
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from lnlit.curation._shards import ReadShard
from lnlit.curation.domains import TABLE_2, share_of, tally
from lnlit.curation.phases import Barrier, Phase
from lnlit.curation.step import Dropped
from lnlit.errors import UserError
from lnlit.files import write_json


class Blend(Barrier):
    """Keeps as many rows of each domain as its share says, spread evenly over the rows that there are.

    A row's domain is its `category` or `domain`, and its thinking mode is told apart where a share names it.

    Args:
        shares: Relative amounts by domain, or by domain and mode, as in `{math/on: 2, math/off: 18, chat: 1}`. Null is
            table 2 of Llama-Nemotron.
        rows: The number of rows of the blend. Null takes as many as the scarcest domain allows. No row is repeated.
    """

    def __init__(self, shares: dict[str, float] | None = None, rows: int | None = None) -> None:
        super().__init__()
        self.shares: Mapping[str, float] = TABLE_2 if shares is None else shares
        if not self.shares or not all(isfinite(share) and share > 0 for share in self.shares.values()):
            raise UserError(f"Blend.shares: expected positive numbers, got {dict(self.shares)}")
        if rows is not None and rows < 1:
            raise UserError(f"Blend.rows: expected a positive number, got {rows}")
        self.rows = rows
        self._counts, self._tasks = "", 0

    def phases(self, shards: str, work: str, tasks: int) -> list[Phase]:
        self._counts, self._tasks = f"{work}/counts", tasks
        return [Phase("Blend: counts", [ReadShard(shards), _Count(self._counts, list(self.shares))], tasks)]

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        counts = [Counter(json.loads(_file(self._counts, task).read_text())) for task in range(self._tasks)]
        there = sum(counts, Counter())
        wanted = wanted_rows(there, self.shares, self.rows)
        seen = sum(counts[:rank], Counter())
        for document in data:
            self._arrived()
            name = share_of(tally(document.metadata), self.shares)
            if name is None:
                self._drop(Dropped("other_domain"), document.id)
                continue
            before, seen[name] = seen[name], seen[name] + 1
            if seen[name] * wanted[name] // there[name] > before * wanted[name] // there[name]:
                yield self._on(document)
            else:
                self._drop(Dropped("beyond_its_share"), document.id)


class _Count(PipelineStep):
    """Writes how many rows of each share a task has."""

    type, name = "lnlit", "Count"

    def __init__(self, folder: str, shares: list[str]) -> None:
        super().__init__()
        self.folder, self.shares = folder, shares

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        names = dict.fromkeys(self.shares, 1.0)
        found = Counter(share_of(tally(each.metadata), names) for each in data)
        write_json(_file(self.folder, rank), {name: found[name] for name in self.shares})
        return iter(())


def _file(folder: str, task: int) -> Path:
    return Path(folder) / f"{task:05d}.json"


def wanted_rows(there: Mapping[str, int], shares: Mapping[str, float], rows: int | None) -> dict[str, int]:
    """The number of rows of each share, which sum up to `rows`, or to as many as there are enough of all for. What is
    lost by rounding goes to the largest remainders.

    Raises `UserError` for a share that has fewer rows than it needs.
    """
    whole = sum(shares.values())
    most = floor(min(there.get(name, 0) * whole / share for name, share in shares.items()) + 1e-9)
    total = most if rows is None else rows
    exact = {name: total * share / whole for name, share in shares.items()}
    found = {name: floor(amount) for name, amount in exact.items()}
    by_remainder = sorted(shares, key=lambda name: found[name] - exact[name])
    for name in by_remainder[: total - sum(found.values())]:
        found[name] += there.get(name, 0) > found[name] or rows is not None
    scarce = next((name for name in shares if found[name] > there.get(name, 0) or not there.get(name, 0)), None)
    if scarce is not None:
        raise UserError(
            f"Blend: {scarce} has {there.get(scarce, 0):,} rows, of {max(found[scarce], 1):,} that a blend of "
            f"{total or rows or 1:,} needs. Lower rows, give it more, or leave it out of the shares."
        )
    return found
