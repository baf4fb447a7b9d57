"""Finished measurements of an unfinished cost table: an interrupted run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import Latency
from lnlit.journal import Journal
from lnlit.search.measure import Times

#: Which round, and which model in it.
Turn = tuple[int, str]


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
                turn, latencies = self._read(number, entry)
                self._latencies[turn] = latencies
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

    def _read(self, number: int, entry: Any) -> tuple[Turn, list[Latency]]:
        try:
            latencies = [Latency(_seconds(one["prefill_s"]), _seconds(one["decode_s"])) for one in entry["latencies"]]
            return (int(entry["round"]), str(entry["model"])), latencies
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.journal.file}:{number}: no measurement of a model ({type(error).__name__}: {error}). Delete "
                "this line to measure that model again, or the file to start anew."
            ) from error


def in_words(turn: Turn) -> str:
    return f"round {turn[0] + 1}, {turn[1]}"


def _seconds(values: Iterable[Any]) -> tuple[float, ...]:
    seconds = tuple(map(float, values))
    if not seconds or not all(0 <= value < math.inf for value in seconds):
        raise ValueError(f"expected seconds, got {values!r:.80}")
    return seconds
