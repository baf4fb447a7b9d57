"""Steps that ask a model: any rollout engine, in batches, with every batch of answers on disk before it is used.

An interrupted task reads the answers that it has from its journal in the order in which it asked, so that at most one
batch is generated again. An answer's randomness comes from the seed, the step, the row and the sample, never from the
batch that it was in.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from datatrove.data import Document

from lnlit.curation.model import Answer, Model, Question
from lnlit.curation.rows import Row, text_of
from lnlit.curation.step import BatchStep, Dropped, Outcome
from lnlit.data.rows import ANSWERS
from lnlit.errors import UserError
from lnlit.journal import Journal


class AskStep(BatchStep):
    """The base of steps that ask models. `batch` calls `ask`."""

    #: The step's place in its pipeline, and the folder of its journals. Without one, nothing is kept.
    place = ""
    journals: str | None = None

    def __init__(self, rows_per_batch: int) -> None:
        super().__init__(rows_per_batch)
        self._journal: Journal | None = None
        self._kept: Iterator[tuple[int, Any]] = iter(())

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if self.journals is None:
            yield from super().run(data, rank, world_size)
            return
        file = Path(self.journals) / f"{rank:05d}.jsonl"
        with Journal(file, {"step": self.place, "tasks": world_size}, "answers") as self._journal:
            self._kept = islice(self._journal.numbered(), len(self._journal))
            yield from super().run(data, rank, world_size)

    def ask(self, model: Model, questions: Sequence[Question], samples: int | None = 1) -> list[list[Answer]]:
        """The answers to each question: `samples` of them, or with None as many as the model's settings say."""
        if not questions:
            return []
        keys = [key for key, _ in questions]
        entry = next(self._kept, (0, None))[1]
        if entry is None:
            from lnlit.curation._answering import answers  # torch, which steps that ask nothing do without

            found = answers(model, questions, samples, self.place)
            if self._journal is not None:
                self._journal.append({"keys": keys, "answers": [[asdict(one) for one in each] for each in found]})
        elif entry["keys"] != keys:
            raise UserError(f"{self.journals}: holds the answers of other rows. Delete the folder of scratch.")
        else:
            found = [[Answer(**one) for one in each] for each in entry["answers"]]
        self.stat_update("asked", value=len(questions))
        return found


class AskEach(AskStep):
    """The base of steps that ask one model about each row. A row without any answer goes no further.

    Args:
        model: The model that is asked.
        prompt: The prompt, with the names of texts in braces, and perhaps those of other columns.
        texts: The texts that the prompt has to show, each with its column. Null takes what the row asks.
        rows_per_batch: The number of rows that are asked about together.
    """

    #: The number of answers; None leaves it to the model's settings.
    SAMPLES: ClassVar[int | None] = 1

    def __init__(self, model: Model, prompt: str, texts: Mapping[str, str | None], rows_per_batch: int) -> None:
        super().__init__(rows_per_batch)
        self.model, self.texts = model, dict(texts)
        self.prompt = check_prompt(type(self).__name__, prompt, *texts)

    def shown(self, row: Row) -> Row | Dropped:
        """The row with the texts, or why there is nothing to ask."""
        found = {name: text_of(row, column) for name, column in self.texts.items()}
        lacking = next((self.texts[name] or "text" for name, text in found.items() if text is None), None)
        return {**row, **found} if lacking is None else Dropped(f"no_{lacking}", f"{lacking} holds nothing")

    @abstractmethod
    def read(self, row: Row, answers: Sequence[Answer]) -> Outcome:
        """What becomes of a row with these answers, which are whole."""

    def unanswered(self, row: Row, why: Dropped) -> Outcome:
        """What becomes of a row without a whole answer."""
        return why

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        shown = [self.shown(each.metadata) for each in documents]
        asked = [
            (each.id, said(filled(self.prompt, parts)))
            for each, parts in zip(documents, shown, strict=True)
            if not isinstance(parts, Dropped)
        ]
        answers = iter(self.ask(self.model, asked, self.SAMPLES))
        return [
            parts if isinstance(parts, Dropped) else self._outcome(each.metadata, next(answers))
            for each, parts in zip(documents, shown, strict=True)
        ]

    def _outcome(self, row: Row, answers: Sequence[Answer]) -> Outcome:
        whole = [answer for answer in answers if not answer.missing()]
        if len(answers) > len(whole) > 0:
            self.stat_update("answers_left_out", value=len(answers) - len(whole))
        missing = next((why for answer in answers if (why := answer.missing())), None)
        return self.read(row, whole) if whole or missing is None else self.unanswered(row, missing)


def said(text: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def filled(prompt: str, row: Mapping[str, Any]) -> str:
    """A prompt with `{column}` replaced by the row's text. Other braces stay, as formulas are full of them."""
    return re.sub(r"\{(\w+)\}", lambda found: _text(row[found[1]]) if found[1] in row else found[0], prompt)


def check_prompt(step: str, prompt: str, *columns: str) -> str:
    """The prompt, if it names these columns."""
    for column in columns:
        if f"{{{column}}}" not in prompt:
            raise UserError(f"{step}.prompt: has no {{{column}}}, so the model would not see it")
    return prompt


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def without_answer(row: Row) -> Row:
    """A row without what it says as its answer, for a completion to take its place."""
    kept = {key: value for key, value in row.items() if key not in (*ANSWERS, "reasoning_content")}
    messages = kept.get("messages")
    if isinstance(messages, list):
        kept["messages"] = list(messages)
        while kept["messages"] and kept["messages"][-1].get("role") == "assistant":
            kept["messages"].pop()
    return kept
