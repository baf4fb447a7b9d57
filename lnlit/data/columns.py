"""Columns of tables that are called otherwise than lnlit reads them."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable, Mapping
from typing import Any

from lnlit.errors import UserError, did_you_mean


class Columns(UserDict[str, str | None]):
    """Column -> what it is to be called, or None: leave it out. Raises `UserError` where two would be called the same.

    Printed behind a source's name it says what was renamed, so that sources which differ in this are not the same.
    """

    def __init__(self, columns: Mapping[str, str | None]) -> None:
        super().__init__(columns)
        for column, name in columns.items():
            others = [other for other, called in columns.items() if called == name and other != column]
            if name is not None and others:
                raise UserError(f"columns: {column!r} and {others[0]!r} cannot both be called {name!r}")

    def __str__(self) -> str:
        parts = [f"{column} left out" if name is None else f"{column} as {name}" for column, name in self.items()]
        return f" ({', '.join(parts)})" if parts else ""

    def check(self, rows: Iterable[Mapping[str, Any]], table: str) -> None:
        """Raises `UserError` for a column that none of these first rows has."""
        found = dict.fromkeys(key for row in rows for key in row)
        for column, name in self.items():
            if column not in found and found:
                guess = did_you_mean(column, found)
                if name in found and not guess:
                    guess = f" Columns come first, as in {{{name}: {column}}}."
                raise UserError(f"columns: {table} has no column {column!r}.{guess} It has: {', '.join(found)}.")

    def renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its columns called so. Raises `UserError` where a name is taken."""
        new: dict[str, Any] = {}
        for column, value in row.items():
            name = self.get(column, column)
            if name is None:
                continue
            if value is not None and new.get(name) is not None:
                raise UserError(
                    f"columns: two columns would be called {name!r}. Leave the other one out: {{{name}: null}}, or "
                    "call it something else."
                )
            if value is not None or name not in new:
                new[name] = value
        return new
