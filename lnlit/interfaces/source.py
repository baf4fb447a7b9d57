"""Socket `source`: where rows of training or evaluation data come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any


class Source(ABC):
    """A finite, deterministic sequence of rows. A row is a dict of JSON values.

    Chat rows have any form that `lnlit.data.rows` reads, such as `messages` ([{role, content}, ...]); the README lists
    them. Extra keys (`answer`, `category`, ...) pass through untouched: rewards may read them.
    """

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Rows from index `start` on, always in the same order. `UserError` names file and line of a bad row."""
