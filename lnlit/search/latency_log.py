"""Finished measurements of an unfinished cost table: an interrupted run goes on where it stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import Latency
from lnlit.journal import Journal
from lnlit.schema import Whole, read
from lnlit.search.measure import Times

#: Which round, and which model in it.
Turn = tuple[int, str]
_THEN = "Delete this line to measure that model again, or the file to start anew."


@dataclasses.dataclass(frozen=True)
class _Line:
    round: Whole
    model: str
    latencies: tuple[Latency, ...]


class LatencyLog:
    """A journal with one line per round and model.

    Two measurements at once would time each other, so it belongs to one process at a time. Raises `UserError` for a
    line that is no measurement, and as `Journal` does.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._latencies: dict[Turn, list[Latency]] = {}
        try:
            for number, entry in journal.numbered():
                found = read(_Line, entry, f"{journal.file}:{number}:", then=_THEN)
                if not all(one.prefill_s and one.decode_s for one in found.latencies):
                    raise UserError(f"{journal.file}:{number}: latencies: a workload without times. {_THEN}")
                self._latencies[found.round, found.model] = list(found.latencies)
        except BaseException:
            journal.close()
            raise

    @classmethod
    def beside(cls, out: Path, settings: Mapping[str, Any]) -> LatencyLog:
        """In `<out>.partial`."""
        return cls(Journal.beside(out, settings, "measurements"))

    def __enter__(self) -> LatencyLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def __contains__(self, turn: Turn) -> bool:
        """Whether it is measured."""
        return turn in self._latencies

    def append(self, turn: Turn, latencies: Iterable[Latency]) -> None:
        latencies = list(latencies)
        measured = [dataclasses.asdict(one) for one in latencies]
        self.journal.append({"round": turn[0], "model": turn[1], "latencies": measured})
        self._latencies[turn] = latencies

    def times(self, models: Iterable[str], rounds: int) -> Times:
        return {name: [self._latencies[index, name] for index in range(rounds)] for name in models}

    def delete(self) -> None:
        """The table that it was for is written."""
        self.journal.file.unlink()


def in_words(turn: Turn) -> str:
    return f"round {turn[0] + 1}, {turn[1]}"
