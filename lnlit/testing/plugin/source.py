"""A source of rows for training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import Source


class Example(Source):
    """Additions of numbers up to `largest`, as conversations with an `answer`.

    Args:
        largest: The largest number to add.
    """

    def __init__(self, largest: int = 9) -> None:
        if largest < 0:
            raise UserError(f"largest: got {largest}; expected at least 0")
        self.largest = largest

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        for index in range(start, (self.largest + 1) ** 2):
            one, other = divmod(index, self.largest + 1)
            yield {"input": f"What is {one} + {other}?", "output": str(one + other), "answer": str(one + other)}
