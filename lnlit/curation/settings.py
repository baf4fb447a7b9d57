"""What a pipeline is made of, as data: an interrupted run goes on only if none of it has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from lnlit.data.sources import FileSource

T = TypeVar("T")


@runtime_checkable
class Closing(Protocol):
    """A part with processes or memory of its own."""

    def close(self) -> None: ...


@runtime_checkable
class Stated(Protocol):
    """A part that says itself what it is made of."""

    def stated(self) -> Any:
        """All that its results depend on, as JSON data."""


def stated(part: Any) -> Any:
    """A part of a configuration as JSON data: its class and its public settings, at any depth. Files that a source
    reads count by their content."""
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, Path):
        return str(part)
    if isinstance(part, Mapping):
        return {str(key): stated(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [stated(each) for each in part]
    if isinstance(part, set | frozenset):
        return sorted(map(str, part))
    if isinstance(part, type) or not hasattr(part, "__dict__"):
        return f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', type(part).__qualname__)}"
    if isinstance(part, Stated):
        return part.stated()
    own = type(part)
    found = {"class": f"{own.__module__}.{own.__qualname__}"}
    names = [field.name for field in fields(part)] if is_dataclass(part) else list(vars(part))
    if isinstance(part, FileSource):
        found["content"] = digest_of(part.files)
    hidden = ("stats", "files", "strict", "place", "journals")
    return found | {name: stated(getattr(part, name)) for name in names if name not in hidden and name[0] != "_"}


def digest_of(files: list[Path]) -> str:
    """A digest of the files' contents, in order."""
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()


_shared: dict[str, Any] = {}


def shared(settings: Any, make: Callable[[], T]) -> T:
    """What all tasks of a process use together, such as a model, made for the first of them. `settings` tell it
    apart."""
    key = json.dumps(settings, sort_keys=True)
    if key not in _shared:
        _shared[key] = make()
    return _shared[key]


@contextmanager
def closing_shared() -> Iterator[None]:
    """Closes what tasks have shared in the block, as far as they ran in this process."""
    try:
        yield
    finally:
        while _shared:
            part = _shared.popitem()[1]
            for each in part if isinstance(part, tuple) else (part,):
                if isinstance(each, Closing):
                    each.close()
