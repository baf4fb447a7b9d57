"""A prompt with several answers side by side, as pages show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: Characters of a long text's start and end that are shown.
_HEAD, _TAIL = 4000, 2000


class Side(NamedTuple):
    """An answer: whose it is, its value in words, a note, and its text."""

    name: str
    value: str
    note: str
    text: str


class Asked(NamedTuple):
    """(role, text) of each message of a prompt, and its answers."""

    turns: Sequence[tuple[str, str]]
    sides: Sequence[Side]


def shortened(text: str) -> str:
    """The text, of which the middle is left out if it is long."""
    hidden = len(text) - _HEAD - _TAIL
    return text if hidden <= 0 else f"{text[:_HEAD]}\n\n[... {hidden:,} characters ...]\n\n{text[-_TAIL:]}"
