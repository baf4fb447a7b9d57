"""Interface `source`: rows of training or evaluation data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any


class Source(ABC):
    """A finite, deterministic sequence of rows. A row is a dict of JSON values.

    Chat rows may have any form that `lnlit.data.rows` reads, such as `messages` ([{role, content}, ...]);
    docs/guide/rows.md lists them. Other keys (`answer`, `category`, ...) are passed through, so that rewards can read
    them.
    """

    def __str__(self) -> str:
        return type(self).__name__

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yields rows from index `start` on, always in the same order. Raises `UserError` naming file and line of a bad
        row."""
