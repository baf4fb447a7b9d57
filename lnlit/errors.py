"""Errors that a user can cause. The command line prints them as one message without a traceback and exits with code
2."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from lnlit.renamed import now_called


class UserError(ValueError):
    """Bad input. The message says what was wrong, what was given, what is allowed and what to do next."""


def causes(error: BaseException, contexts: bool = False) -> Iterator[BaseException]:
    """An error and what it was raised from. With `contexts`, also what was being handled when it was raised."""
    seen: set[int] = set()  # causes may go round in a circle
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (cause.__context__ if contexts else None)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`, `" It is now called 'x'."`, or an empty string if no allowed name is close."""
    allowed = list(allowed)
    if new := now_called(name, allowed):
        return f" It is now called {new!r}."
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_key(path: str, key: str, allowed: Iterable[str]) -> UserError:
    names = sorted(allowed)
    listing = ", ".join(names) or "none"
    return UserError(f"{path}: unknown key {key!r}.{did_you_mean(key, names)} Allowed: {listing}.")


def check_positive(where: str, **values: float | None) -> None:
    """Raises `UserError` for the first of some settings that is given and not above 0."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UserError(f"{where}.{name}: expected a positive number, got {value}")


def optional(module: str, extra: str) -> Any:
    """A module that not every installation has. Raises `UserError` naming the extra of lnlit that brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{module.partition('.')[0]} is not installed; run: pip install 'lnlit[{extra}]'") from error


def shown(value: object) -> str:
    """A user's value as text, shortened so that it does not bury the error message that quotes it."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxdict, brief.maxlist, brief.maxtuple = 2, 4, 3, 3
    brief.maxstring = brief.maxother = 60
    text = brief.repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
