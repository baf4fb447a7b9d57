"""Plain dataclasses from JSON, with errors that name the place."""

from __future__ import annotations

from typing import Any, TypeVar

from lnlit.errors import UserError
from lnlit.specs import fields_of

T = TypeVar("T")


def all_of(kind: type[T], data: Any, path: str) -> tuple[T, ...]:
    """A list of objects as dataclasses."""
    return tuple(kind(**fields_of(kind, item, f"{path}[{i}]")) for i, item in enumerate(list_of(data, path)))


def list_of(data: Any, path: str) -> list[Any]:
    if not isinstance(data, list | tuple):
        raise UserError(f"{path}: expected a list, got {data!r:.80}.")
    return list(data)


def without_none(value: Any) -> Any:
    """JSON with the keys that hold null left out."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list | tuple) else value
