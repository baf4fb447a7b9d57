"""Finished measurements of an unfinished cost table: an interrupted run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lnlit.errors import UserError
from lnlit.files import open_locked
from lnlit.interfaces import Latency
from lnlit.search.measure import Times


class LatencyLog:
    """A file of JSON lines: the settings, then one line per round and model. A line that a crash cut off is dropped.

    Two measurements at once would time each other, so it belongs to one process at a time.

    Raises `UserError` when `file` was begun with other settings, for a line that is no measurement, and while another
    process measures into it.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.file = file
        self._latencies: dict[tuple[int, str], list[Latency]] = {}
        self._stream = open_locked(file, "these measurements")
        try:
            self._open(settings)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> LatencyLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __contains__(self, turn: tuple[int, str]) -> bool:
        """Whether (round, model name) is measured."""
        return turn in self._latencies

    def append(self, turn: tuple[int, str], latencies: Iterable[Latency]) -> None:
        latencies = list(latencies)
        entry = {"round": turn[0], "model": turn[1], "latencies": [dataclasses.asdict(one) for one in latencies]}
        self._write(entry)
        self._latencies[turn] = latencies

    def times(self, models: Iterable[str], rounds: int) -> Times:
        return {name: [self._latencies[index, name] for index in range(rounds)] for name in models}

    def _check(self, line: bytes, settings: Mapping[str, Any]) -> None:
        try:
            found = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.file}: not an unfinished measurement: {error}. Delete it to start anew.") from error
        wanted = json.loads(_line(settings))
        if different := [key for key in wanted if found.get(key) != wanted[key]]:
            raise UserError(
                f"{self.file} holds an unfinished measurement with other settings ({', '.join(different)}). "
                "Repeat those to go on with it, delete it to start anew, or write elsewhere."
            )

    def _read(self, number: int, line: bytes) -> tuple[tuple[int, str], list[Latency]]:
        try:
            entry = json.loads(line)
            latencies = [Latency(_seconds(one["prefill_s"]), _seconds(one["decode_s"])) for one in entry["latencies"]]
            return (int(entry["round"]), str(entry["model"])), latencies
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.file}:{number}: no measurement of a model ({type(error).__name__}: {error}). Delete this line "
                "to measure that model again, or the file to start anew."
            ) from error

    def _open(self, settings: Mapping[str, Any]) -> None:
        text = self._stream.read()
        lines = text.split(b"\n")[:-1]
        if lines:
            self._check(lines[0], settings)
        for number, line in enumerate(lines[1:], start=2):
            turn, latencies = self._read(number, line)
            self._latencies[turn] = latencies
        self._stream.truncate(text.rfind(b"\n") + 1)
        if not lines:
            self._write(settings)

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._stream.write(_line(entry) + b"\n")
        self._stream.flush()


def _seconds(values: Iterable[Any]) -> tuple[float, ...]:
    seconds = tuple(map(float, values))
    if not seconds or not all(0 <= value < math.inf for value in seconds):
        raise ValueError(f"expected seconds, got {values!r:.80}")
    return seconds


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, allow_nan=False).encode()
