"""What benchmarks of generated answers share: rows of a public dataset that become questions, sampled as in the
paper."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

from lnlit.errors import UserError
from lnlit.eval.protocol import SamplingProtocol, in_turn, read_questions
from lnlit.interfaces import GenerationTask, Question, Source, TaskSampling
from lnlit.thinking import Thinking


class Benchmark(GenerationTask):
    """The base class of benchmarks whose rows are questions.

    Args:
        source: The source of the rows. By default the public dataset on the Hugging Face hub.
        rows: The number of questions; all if null. They are the first ones, or equally many of each group where the
            dataset is sorted by group.
        protocol: How answers are sampled.
    """

    #: True if the dataset is sorted by group, so that its first rows are all of one.
    SORTED_BY_GROUP: ClassVar[bool] = False

    def __init__(
        self, source: Source | None = None, rows: int | None = None, protocol: SamplingProtocol = SamplingProtocol()
    ) -> None:
        if rows is not None and rows < 1:
            raise UserError(f"rows: got {rows}; expected at least 1, or null for all")
        self.source, self.rows, self.protocol = source or self.public(), rows, protocol

    @abstractmethod
    def public(self) -> Source:
        """The public dataset."""

    @abstractmethod
    def question(self, row: Mapping[str, Any]) -> Question:
        """A row as a question. Raises `UserError` for a row that is none."""

    def questions(self) -> Iterator[Question]:
        rewards = self.rewards().values()

        def read(row: Mapping[str, Any]) -> Question:
            question = self.question(row)
            for reward in rewards:
                reward.check_row(question.row)
            return question

        if not self.SORTED_BY_GROUP or self.rows is None:
            return read_questions(self.source, self.rows, read)
        return islice(in_turn(read_questions(self.source, None, read)), self.rows)

    def sampling(self, thinking: Thinking | None) -> TaskSampling:
        return self.protocol.of(thinking)


def user(content: str) -> list[dict[str, str]]:
    """A conversation that begins with a question."""
    return [{"role": "user", "content": content}]
