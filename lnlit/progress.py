"""Progress reports on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

Item = TypeVar("Item")

#: Seconds between lines where there is no terminal.
_LINE_EVERY_S = 10.0


def track(
    items: Iterable[Item],
    what: str,
    unit: str = "",
    *,
    total: float | None = None,
    done: float = 0,
    size: Callable[[Item], float] = lambda _: 1,
    label: Callable[[Item], object] = lambda _: "",
) -> Iterator[Item]:
    """Iterates over `items` and reports progress with a rate and the time left. An item counts as done when the next
    one is requested. If the total is unknown, nothing remains on the terminal at the end.

    Args:
        items: The items to iterate over.
        what: A word or two that describe the work.
        unit: The singular name of what is counted. If empty, a percentage is shown.
        total: The sum of all sizes, including those done before. By default the number of items, if known.
        done: The amount that was done before.
        size: A function that returns how much an item adds to the amount done.
        label: A function that returns a text to show while an item is processed.
    """
    if total is None and isinstance(items, Sized):
        total = done + len(items)
    meter = _Bar(what, unit, total, done) if sys.stderr.isatty() else _Lines(what, unit, total, done)
    try:
        for item in items:
            meter.begin(str(label(item)))
            yield item
            meter.add(size(item))
    finally:
        meter.close()


def say(text: str) -> None:
    """Prints a progress message immediately."""
    print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Formats seconds as hours, minutes and seconds: "1:02:03", "2:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class _Bar:
    def __init__(self, what: str, unit: str, total: float | None, done: float) -> None:
        from tqdm import tqdm

        form = None if unit else "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
        look = {"desc": what, "unit": f" {unit}", "unit_scale": True, "bar_format": form, "leave": total is not None}
        self._bar: Any = tqdm(total=total, initial=done, **look)

    def begin(self, label: str) -> None:
        self._bar.set_postfix_str(label, refresh=bool(label))

    def add(self, size: float) -> None:
        self._bar.update(size)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, what: str, unit: str, total: float | None, done: float) -> None:
        self._what, self._unit, self._total, self._done, self._first = what, unit, total, done, done
        self._start = self._told = time.monotonic()
        self._label = ""

    def begin(self, label: str) -> None:
        self._label = label

    def add(self, size: float) -> None:
        self._done += size
        now = time.monotonic()
        is_last = self._total is not None and self._done >= self._total
        if is_last or now - self._told >= _LINE_EVERY_S:
            self._told = now
            say(self._line(now - self._start))

    def close(self) -> None:
        """Does nothing, since there is nothing to close."""

    def _line(self, seconds: float) -> str:
        rate = (self._done - self._first) / max(seconds, 1e-9)
        told = f"{self._done:,.0f}"
        if self._total is not None:
            told += f" of {self._total:,.0f}"
        told = f"{told} {self._unit}s, {rate:.3g}/s" if self._unit else f"{self._done / (self._total or 1):.0%}"
        if self._total is not None:
            left = (self._total - self._done) / max(rate, 1e-9)
            told += f", {clock(left)} left" if left > 0 else f", took {clock(seconds)}"
        return f"{self._what}: {told}" + (f": {self._label}" if self._label else "")
