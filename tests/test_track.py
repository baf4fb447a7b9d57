"""Lines about how far work is, with a clock that stands still unless it is told."""

from __future__ import annotations

import io
import sys

import pytest

from lnlit import progress
from lnlit.progress import clock, track


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time, in seconds; each item below takes 4."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def work(now, *args, **settings) -> None:
    for _ in track(*args, **settings):
        now[0] += 4


def test_a_line_now_and_then_and_one_at_the_end(now, capsys):
    work(now, range(5), "score", "row", total=7, done=2, label=lambda n: f"number {n}")
    assert capsys.readouterr().err.splitlines() == [
        "score: 5 of 7 rows, 0.25/s, 0:08 left: number 2",
        "score: 7 of 7 rows, 0.25/s, took 0:20: number 4",
    ]


def test_what_is_left_goes_by_the_size_of_items(now, capsys):
    work(now, [6, 2, 1, 1, 10], "fuse", total=20, size=lambda n: n)
    assert capsys.readouterr().err.splitlines()[0] == "fuse: 45%, 0:15 left"


def test_work_without_a_known_end_is_told_only_where_it_takes_time(now, capsys):
    work(now, iter("ab"), "read", "row")
    assert capsys.readouterr().err == ""
    work(now, iter("abcd"), "read", "row")
    assert capsys.readouterr().err.splitlines() == ["read: 3 rows, 0.25/s"]


@pytest.mark.parametrize("unit", ["row", ""])
def test_a_terminal_gets_a_bar_that_is_full_when_all_is_done(monkeypatch, unit):
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in track(range(3), "fill", unit, label=str):
        pass
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("fill: 100%") and ("3.00/3.00" in last) == bool(unit)


def test_nothing_to_do_says_nothing(capsys):
    assert list(track([], "score", "row")) == [] and capsys.readouterr().err == ""


def test_a_clock_reads_as_one():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]
