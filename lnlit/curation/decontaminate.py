"""Drops rows that repeat questions of benchmarks (Llama-Nemotron section 3.1, after Yang et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from datatrove.data import Document

from lnlit.curation.asking import AskStep, check_prompt, filled, said
from lnlit.curation.embedding import Embedding
from lnlit.curation.model import Model
from lnlit.curation.ngrams import Index
from lnlit.curation.rows import text_of
from lnlit.curation.settings import shared, stated
from lnlit.curation.step import Dropped, Outcome
from lnlit.data.sources import rows_of, where
from lnlit.errors import UserError
from lnlit.interfaces import Source

_JUDGE = """\
Below are two problems. Are they the same problem, perhaps in other words, so that whoever has seen one knows the answer
to the other? Other numbers make another problem. Answer yes or no, and nothing else.

First problem:
{problem}

Second problem:
{question}"""
#: The lowest share of a question's n-grams from which on a judge is asked about it.
_WORTH_ASKING = 0.2


class Decontaminate(AskStep):
    """Drops a row if it has most of the n-grams of a benchmark's question, counted by benchmark (`in_NAME`).

    Words are compared in lower case, numbers and the signs of formulas are words, and how LaTeX is set does not matter.
    A question of fewer words than an n-gram has to be the whole row. Paraphrases share few n-grams: `embedding` finds
    them by their meaning (`near_NAME`), and a `judge` decides about whatever is near by either (`judged_NAME`).

    Args:
        benchmarks: The questions of each benchmark, by name.
        column: The column of the rows that is compared. Null compares what rows ask, without their answers.
        benchmark_column: The same for the benchmarks.
        ngram: The number of words in an n-gram.
        threshold: The lowest share of a question's n-grams that counts as a repetition.
        embedding: Compares texts by their meaning as well.
        judge: The model that is asked whether two problems are the same.
        prompt: The judge's prompt, with {problem} and {question} in it. Its answer begins with yes or no.
        rows_per_batch: The number of rows that are looked at together.
    """

    def __init__(
        self,
        benchmarks: dict[str, Source],
        column: str | None = None,
        benchmark_column: str | None = None,
        ngram: int = 8,
        threshold: float = 0.7,
        embedding: Embedding | None = None,
        judge: Model | None = None,
        prompt: str = _JUDGE,
        rows_per_batch: int = 64,
    ) -> None:
        super().__init__(rows_per_batch)
        if not benchmarks:
            raise UserError("Decontaminate.benchmarks: expected at least one source by name")
        if ngram < 1 or not 0 < threshold <= 1:
            raise UserError(
                f"Decontaminate: needs ngram of 1 or more and a threshold above 0 and up to 1, got {ngram} and "
                f"{threshold}"
            )
        self.benchmarks, self.column, self.benchmark_column = benchmarks, column, benchmark_column
        self.ngram, self.threshold, self.embedding, self.judge = ngram, threshold, embedding, judge
        self.prompt = check_prompt("Decontaminate", prompt, "problem", "question")
        self._index: Index | None = None

    def index(self) -> Index:
        """The benchmarks' n-grams, which all tasks of a process share."""
        if self._index is None:
            settings = ["ngrams", *stated([self.benchmarks, self.benchmark_column, self.ngram])]
            self._index = shared(settings, lambda: Index(self._questions(), self.ngram))
        return self._index

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        index, outcomes = self.index(), dict[str, Outcome]()
        asked: list[tuple[str, int, str]] = []
        for each in documents:
            text = text_of(each.metadata, self.column)
            if text is None:
                what = self.column or "what it asks"
                outcomes[each.id] = Dropped(
                    "no_text", f"there is no text in {what}; its keys are {list(each.metadata)}"
                )
                continue
            number, share = next(index.found(text), (0, 0.0))
            near = [] if share >= self.threshold else self._near(text)
            outcomes[each.id] = each.metadata
            if share >= self.threshold:
                outcomes[each.id] = Dropped(f"in_{index.names[number]}")
            elif self.judge is not None:
                asked += [(each.id, number, text) for number in near]
            elif near:
                outcomes[each.id] = Dropped(f"near_{index.names[near[0]]}")
        return self._judged(asked, outcomes)

    def _near(self, text: str) -> list[int]:
        """The questions that may be the same in other words."""
        found: dict[int, None] = {}
        if self.embedding is not None:
            found = dict.fromkeys(self.embedding.near(self.index().texts, text))
        if self.judge is not None:
            shares = ((number, share) for number, share in self.index().found(text) if share >= _WORTH_ASKING)
            found |= dict.fromkeys(number for number, _ in list(shares)[:3])
        return list(found)

    def _judged(self, asked: Sequence[tuple[str, int, str]], outcomes: dict[str, Outcome]) -> list[Outcome]:
        """The outcomes, with those of rows that the judge was asked about."""
        if self.judge is not None and asked:
            index = self.index()
            parts = [{"problem": text, "question": index.texts[number]} for _, number, text in asked]
            places = [f"{place}/{number}" for place, number, _ in asked]
            questions = [(key, said(filled(self.prompt, part))) for key, part in zip(places, parts, strict=True)]
            for (place, number, _), (answer,) in zip(asked, self.ask(self.judge, questions), strict=True):
                verdict = re.match(r"\W*(yes|no)\b", answer.said, re.I)
                if isinstance(outcomes[place], Dropped):
                    continue
                if missing := answer.missing():
                    outcomes[place] = missing
                elif verdict is None:
                    outcomes[place] = Dropped("unreadable_reply")
                elif verdict[1].lower() == "yes":
                    outcomes[place] = Dropped(f"judged_{index.names[number]}")
        return list(outcomes.values())

    def _questions(self) -> Iterator[tuple[str, str]]:
        for name, source in self.benchmarks.items():
            for number, row in enumerate(rows_of(source)):
                text = text_of(row, self.benchmark_column)
                if text is None:
                    column = self.benchmark_column or "a question"
                    raise UserError(f"{where(source, number)}: the benchmark {name!r} has no {column} here")
                yield name, text
