"""Wildcard patterns over the names of choices."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def fitting(pattern: str, names: Iterable[str]) -> set[str]:
    """The names that match `pattern`. A name equal to the pattern matches alone; otherwise `*`, `?` and `[...]` are
    wildcards. This way a choice called "a[1]" can be named."""
    known = set(names)
    return {pattern} if pattern in known else {name for name in known if fnmatchcase(name, pattern)}
