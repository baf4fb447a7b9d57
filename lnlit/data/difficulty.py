"""Prompts of the right difficulty, by how often a model solved them (Llama-Nemotron section 5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.data.sources import SomeRows, rows_of, where
from lnlit.errors import UserError
from lnlit.interfaces import Source


class DifficultySource(SomeRows):
    """The rows of another source whose `pass_rate`, which `lnlit rollout annotate` adds, is within bounds.

    Rows that could not be judged (`pass_rate` null) are left out. Says once how many rows are kept.

    Args:
        source: Annotated rows.
        pass_rate_below: Rows with this pass rate or a higher one are left out; null keeps them.
        pass_rate_above: Rows with this pass rate or a lower one are left out, with 0 those that were never solved. Null
            keeps them: the paper does not say what became of them, and they begin to teach once one sample succeeds.
    """

    def __init__(
        self, source: Source, pass_rate_below: float | None = 0.75, pass_rate_above: float | None = None
    ) -> None:
        for name, bound in (("below", pass_rate_below), ("above", pass_rate_above)):
            if bound is not None and not 0 <= bound <= 1:
                raise UserError(f"DifficultySource.{name}: a pass rate is from 0 to 1, got {bound}")
        if pass_rate_below is not None and (
            pass_rate_below == 0 or (pass_rate_above is not None and pass_rate_above >= pass_rate_below)
        ):
            raise UserError(f"DifficultySource: no pass rate is above {pass_rate_above} and below {pass_rate_below}")
        self.source, self.pass_rate_below, self.pass_rate_above = source, pass_rate_below, pass_rate_above
        self._said = False

    def __str__(self) -> str:
        bounds = [
            f"{name} {bound:g}"
            for name in ("above", "below")
            if (bound := getattr(self, f"pass_rate_{name}")) is not None
        ]
        return f"{self.source} (pass rate {' and '.join(bounds) or 'known'})"

    def kept(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows within bounds, each with its index in the underlying source."""
        counts: dict[str, int] = dict.fromkeys(("kept", "too easy", "too hard", "not judged"), 0)
        for index, row in enumerate(rows_of(self.source)):
            what = self._what(row, index)
            counts[what] += 1
            if what == "kept":
                yield index, row
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "kept")
        if not counts["kept"]:
            raise UserError(f"DifficultySource: no row of {self} is left ({told}). Give more rows or other bounds.")
        if not self._said:
            self._said = True
            rank_zero_info(f"{self}: {told}")

    def _what(self, row: dict[str, Any], index: int) -> str:
        rate = row.get("pass_rate")
        if rate is None and "pass_rate" in row:
            return "not judged"
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            has = f"its pass_rate is {rate!r:.40}, expected 0 to 1" if "pass_rate" in row else "it has no pass_rate"
            raise UserError(
                f"{where(self.source, index)}: {has}. `lnlit rollout annotate` writes rows with the pass rate of a "
                "model of your choice."
            )
        if self.pass_rate_below is not None and rate >= self.pass_rate_below:
            return "too easy"
        return "too hard" if self.pass_rate_above is not None and rate <= self.pass_rate_above else "kept"
