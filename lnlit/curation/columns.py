"""Keeps, leaves out and renames columns, and drops rows by what is in them."""

from __future__ import annotations

from typing import Any

from lnlit.curation.step import Dropped, Outcome, Row, Step
from lnlit.errors import UserError


class Columns(Step):
    """Chooses the columns of rows.

    Args:
        keep: The columns that rows keep, in this order. Null keeps all.
        drop: Columns that are left out.
        required: Columns that must hold something. A row in which one is absent, null or empty is dropped.
        only: The values that a column may have, as in `{category: [math, code]}`. Rows with others are dropped.
    """

    def __init__(
        self,
        keep: list[str] | None = None,
        drop: list[str] | None = None,
        required: list[str] | None = None,
        only: dict[str, list[Any]] | None = None,
    ) -> None:
        super().__init__()
        if keep is not None and drop:
            raise UserError("Columns: say either keep or drop, not both")
        self.keep, self.drop, self.required, self.only = keep, set(drop or ()), required or [], only or {}

    def each(self, row: Row) -> Outcome:
        for column in self.required:
            value = row.get(column)
            if value is None or value in ([], {}) or (isinstance(value, str) and not value.strip()):
                return Dropped(f"no_{column}", f"{column} holds nothing")
        for column, allowed in self.only.items():
            if row.get(column) not in allowed:
                return Dropped(f"other_{column}")
        if self.keep is not None:
            return {column: row[column] for column in self.keep if column in row}
        return {column: value for column, value in row.items() if column not in self.drop}
