"""Patterns over the names of choices, as a person writes them."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def fitting(pattern: str, names: Iterable[str]) -> set[str]:
    """The names that `pattern` means: the one that is written so, where there is one, else all that its `*`, `?` and
    `[...]` fit. So a choice called "a[1]" can be named.
    """
    known = set(names)
    return {pattern} if pattern in known else {name for name in known if fnmatchcase(name, pattern)}
