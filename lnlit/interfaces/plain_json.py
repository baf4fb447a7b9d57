"""Plain dataclasses from JSON, with errors that name the place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from lnlit.errors import UserError, unknown_key

T = TypeVar("T")


def all_of(kind: type[T], data: Any, path: str) -> tuple[T, ...]:
    """A list of objects as dataclasses."""
    return tuple(kind(**values_of(kind, item, f"{path}[{i}]")) for i, item in enumerate(list_of(data, path)))


def list_of(data: Any, path: str) -> list[Any]:
    if not isinstance(data, list | tuple):
        raise UserError(f"{path}: expected a list, got {data!r:.80}.")
    return list(data)


def values_of(kind: Any, data: Any, path: str) -> dict[str, Any]:
    """`data` as keyword arguments of dataclass `kind`, its keys checked. `UserError` for an unknown or missing one."""
    if not isinstance(data, Mapping):
        raise UserError(f"{path}: expected an object, got {data!r:.80}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            raise unknown_key(path, key, fields)
    for name, f in fields.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}: the key {name!r} is missing.")
    return dict(data)


def without_none(value: Any) -> Any:
    """JSON with the keys that hold null left out."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list | tuple) else value
