"""Splits off held-out questions by hash: a question always falls on the same side, and no list of them is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from lnlit.data.rows import asked
from lnlit.data.sources import SomeRows, naming_row, rows_of
from lnlit.errors import UserError
from lnlit.interfaces import Source

Split = Literal["train", "heldout"]


def is_heldout(question: str, percent: int) -> bool:
    """True if a question is among the `percent` of questions that are held out, by a hash of its text."""
    digest = hashlib.sha256(question.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < percent


def check_split(name: str, split: Split, heldout_percent: int) -> None:
    """Raises `UserError` for an unknown side or a share that leaves a side empty."""
    if split not in get_args(Split):
        raise UserError(f"{name}: split must be train or heldout, got {split!r}")
    if not 0 < heldout_percent < 100:
        raise UserError(f"{name}: heldout_percent must be between 1 and 99, got {heldout_percent}")


class SplitSource(SomeRows):
    """The rows of another source that fall on one side, by a hash of what the user says in them.

    System prompt and answer do not count, so a question's rows with thinking on and off stay together, and a question
    stays on its side when rows are added, removed or reordered.

    Args:
        source: The rows to split, of any form that a chat row may have.
        split: `train` or `heldout`.
        heldout_percent: Share of all questions that is held out. Give both sides the same.
    """

    def __init__(self, source: Source, split: Split, heldout_percent: int = 2) -> None:
        check_split("SplitSource", split, heldout_percent)
        self.source = source
        self.split = split
        self.heldout_percent = heldout_percent

    def __str__(self) -> str:
        return f"{self.source} ({self.split}, {self.heldout_percent} % held out)"

    def kept(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """This side's rows, each with its index in the underlying source."""
        index, kept = -1, False
        for index, row in enumerate(rows_of(self.source)):
            with naming_row(self.source, index):
                question = user_text(row)
            if is_heldout(question, self.heldout_percent) == (self.split == "heldout"):
                kept = True
                yield index, row
        if not kept:
            raise UserError(
                f"SplitSource: none of the {index + 1} rows of {self.source} falls on the {self.split} side with "
                f"heldout_percent {self.heldout_percent}. Give more rows or another heldout_percent, to both sides."
            )


def user_text(row: Mapping[str, Any]) -> str:
    """The user's text in a chat row, turn by turn. Raises `UserError` for a malformed row or one without a user."""
    said = [message["content"] for message in asked(row).messages if message["role"] == "user"]
    if not said:
        raise UserError("no user message, so there is no question to split by; drop the row")
    return said[0] if len(said) == 1 and isinstance(said[0], str) else json.dumps(said)
