"""Steps that ask a model: any rollout engine, in batches, with every batch of answers on disk before it is used.

An interrupted task reads the answers that it has from its journal in the order in which it asked, so that at most one
batch is generated again. An answer's randomness comes from the seed, the step, the row and the sample, never from the
batch that it was in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document

from lnlit.curation.model import Answer, Model, Question
from lnlit.curation.rows import Row
from lnlit.curation.step import BatchStep
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

    def ask_each(self, model: Model, documents: Sequence[Document], prompt: str) -> list[Answer]:
        """One answer for each row, to a prompt with the names of columns in braces."""
        questions = [(each.id, said(filled(prompt, each.metadata))) for each in documents]
        return [answers[0] for answers in self.ask(model, questions)]


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
