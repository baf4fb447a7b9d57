"""Drops rows that repeat questions of benchmarks (Llama-Nemotron section 3.1, after Yang et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator

from lnlit.curation.ngrams import Index
from lnlit.curation.rows import Row, text_of
from lnlit.curation.settings import shared, stated
from lnlit.curation.step import Dropped, Outcome, Step
from lnlit.data.sources import rows_of, where
from lnlit.errors import UserError
from lnlit.interfaces import Source


class Decontaminate(Step):
    """Drops a row if it has most of the n-grams of a benchmark's question, counted by benchmark.

    Words are compared in lower case, numbers and the signs of formulas are words, and how LaTeX is set does not matter.
    A question of fewer words than an n-gram has to be the whole row.

    Args:
        benchmarks: The questions of each benchmark, by name.
        column: The column of the rows that is compared. Null compares what rows ask, without their answers.
        benchmark_column: The same for the benchmarks.
        ngram: The number of words in an n-gram.
        threshold: The lowest share of a question's n-grams that counts as a repetition.
    """

    def __init__(
        self,
        benchmarks: dict[str, Source],
        column: str | None = None,
        benchmark_column: str | None = None,
        ngram: int = 8,
        threshold: float = 0.7,
    ) -> None:
        super().__init__()
        if not benchmarks:
            raise UserError("Decontaminate.benchmarks: expected at least one source by name")
        if ngram < 1 or not 0 < threshold <= 1:
            raise UserError(
                f"Decontaminate: needs ngram of 1 or more and a threshold above 0 and up to 1, got {ngram} and "
                f"{threshold}"
            )
        self.benchmarks, self.column, self.benchmark_column = benchmarks, column, benchmark_column
        self.ngram, self.threshold = ngram, threshold
        self._index: Index | None = None

    def each(self, row: Row) -> Outcome:
        text = text_of(row, self.column)
        if text is None:
            return Dropped("no_text", f"there is no text in {self.column or 'what it asks'}; its keys are {list(row)}")
        index = self.index()
        number, share = next(index.found(text), (0, 0.0))
        return Dropped(f"in_{index.names[number]}") if share >= self.threshold else row

    def index(self) -> Index:
        """The benchmarks' n-grams, which all tasks of a process share."""
        if self._index is None:
            settings = ["ngrams", *stated([self.benchmarks, self.benchmark_column, self.ngram])]
            self._index = shared(settings, lambda: Index(self._questions(), self.ngram))
        return self._index

    def _questions(self) -> Iterator[tuple[str, str]]:
        for name, source in self.benchmarks.items():
            for number, row in enumerate(rows_of(source)):
                text = text_of(row, self.benchmark_column)
                if text is None:
                    column = self.benchmark_column or "a question"
                    raise UserError(f"{where(source, number)}: the benchmark {name!r} has no {column} here")
                yield name, text
