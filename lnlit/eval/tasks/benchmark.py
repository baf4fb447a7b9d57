"""What benchmarks share: rows of a public dataset that become questions, and answers that are sampled as in the
paper."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

from lnlit.data.sources import naming_row, rows_of
from lnlit.errors import UserError
from lnlit.eval.protocol import SamplingProtocol
from lnlit.interfaces import GenerationTask, Question, Source, Task, TaskSampling
from lnlit.thinking import Thinking


class RowsTask(Task):
    """The base class of tasks whose questions are the rows of a dataset.

    Args:
        source: The source of the rows. By default the public dataset on the Hugging Face hub.
        rows: The number of questions; all if null. They are the first ones, or equally many of each group where the
            dataset is sorted by group.
    """

    #: True if the dataset is sorted by group, so that its first rows are all of one.
    SORTED_BY_GROUP: ClassVar[bool] = False

    def __init__(self, source: Source | None = None, rows: int | None = None) -> None:
        if rows is not None and rows < 1:
            raise UserError(f"rows: got {rows}; expected at least 1, or null for all")
        self.source, self.rows = source or self.public(), rows

    def public(self) -> Source:
        """The public dataset."""
        raise UserError(f"{type(self).__name__}: has no public dataset; give it a source of rows.")

    @abstractmethod
    def question(self, row: Mapping[str, Any]) -> Any:
        """A row as a question. Raises `UserError` for a row that is none."""

    def questions(self) -> Iterator[Any]:
        if self.rows is None or not self.SORTED_BY_GROUP:
            return islice(self._read(), self.rows)
        return self._of_each_group(self.rows)

    def _read(self) -> Iterator[Any]:
        """All questions. One that is there twice has two names."""
        seen: Counter[str] = Counter()
        for number, row in enumerate(rows_of(self.source)):
            with naming_row(self.source, number):
                question = self.question(row)
                self.check(question)
            seen[question.key] += 1
            times = seen[question.key]
            yield question if times == 1 else replace(question, key=f"{question.key}-{times}")

    def check(self, question: Any) -> None:
        """Raises `UserError` for a question whose answers could not be judged."""

    def _of_each_group(self, count: int) -> Iterator[Any]:
        """The first question of each group, then the second of each, and so on, in the order of the dataset."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        everything = list(self._read())
        for place, question in enumerate(everything):
            places[question.group].append(place)
        turns = sorted((turn, place) for group in places.values() for turn, place in enumerate(group))
        return (everything[place] for place in sorted(place for _, place in turns[:count]))


class Benchmark(RowsTask, GenerationTask):
    """The base class of benchmarks whose answers are generated.

    Args:
        protocol: How answers are sampled.
    """

    def __init__(
        self, source: Source | None = None, rows: int | None = None, protocol: SamplingProtocol = SamplingProtocol()
    ) -> None:
        super().__init__(source, rows)
        self.protocol = protocol

    def check(self, question: Question) -> None:
        for reward in self.rewards().values():
            reward.check_row(question.row)

    def sampling(self, thinking: Thinking | None) -> TaskSampling:
        return self.protocol.of(thinking)


def user(content: str) -> list[dict[str, str]]:
    """A conversation that begins with a question."""
    return [{"role": "user", "content": content}]
