"""Feedback, edit, select: answers that are criticised, improved and chosen from (Llama-Nemotron section 3.2.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from datatrove.data import Document

from lnlit.curation.asking import AskStep, check_prompt, filled, said
from lnlit.curation.model import Answer, Model
from lnlit.curation.rows import text_of
from lnlit.curation.step import Dropped, Outcome, together

_FEEDBACK = """\
Below are a prompt and an answer to it. Say point by point what the answer lacks in helpfulness, correctness and
clarity.

Prompt:
{prompt}

Answer:
{answer}"""
_EDIT = """\
Below are a prompt, an answer to it, and feedback on the answer. Write the answer anew so that it meets the feedback.
Write the answer alone.

Prompt:
{prompt}

Answer:
{answer}

Feedback:
{feedback}"""
_SELECT = """\
Below are a prompt and {count} answers to it. Which is the best? Write its number alone.

Prompt:
{prompt}

{answers}"""


class Edit(AskStep):
    """Replaces each completion by one that meets the feedback of a model. The first one is kept under `unedited`.

    Args:
        feedback: The model that gives feedback.
        edit: The model that writes the answer anew. Of several samples the first is taken.
        rows_per_batch: The number of completions that are edited together.
    """

    def __init__(self, feedback: Model, edit: Model, rows_per_batch: int = 64) -> None:
        super().__init__(rows_per_batch)
        self.feedback, self.edit = feedback, edit

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        shown = {each.id: self._shown(each) for each in documents}
        there = {place: parts for place, parts in shown.items() if parts is not None}
        given = self._ask(self.feedback, _FEEDBACK, there, "feedback")
        told = {place: {**there[place], "feedback": one.said} for place, one in given.items() if not one.missing()}
        edited = self._ask(self.edit, _EDIT, told, "edit")
        outcomes: list[Outcome] = []
        for each in documents:
            last = edited.get(each.id) or given.get(each.id)
            if last is None:
                outcomes.append(Dropped("no_completion", "there is no prompt, or completion holds nothing"))
            elif missing := last.missing():
                outcomes.append(missing)
            elif not last.said:
                outcomes.append(Dropped("empty_edit"))
            else:
                row = each.metadata
                outcomes.append({**row, "completion": last.said, "unedited": row["completion"]})
        return outcomes

    def _shown(self, document: Document) -> dict[str, str] | None:
        prompt, answer = text_of(document.metadata), text_of(document.metadata, "completion")
        return {"prompt": prompt, "answer": answer} if prompt and answer else None

    def _ask(self, model: Model, prompt: str, parts: dict[str, Any], what: str) -> dict[str, Answer]:
        questions = [(f"{place}/{what}", said(filled(prompt, each))) for place, each in parts.items()]
        answers = self.ask(model, questions)
        return dict(zip(parts, (one[0] for one in answers), strict=True))


class Select(AskStep):
    """Keeps the completion of each prompt that a model chooses.

    Args:
        model: The model that chooses.
        prompt: The prompt, with {prompt} and {answers} in it, and {count} if it is to say how many there are.
        prompts_per_batch: The number of prompts that are asked about together.
    """

    def __init__(self, model: Model, prompt: str = _SELECT, prompts_per_batch: int = 64) -> None:
        super().__init__(prompts_per_batch)
        self.model, self.prompt = model, check_prompt("Select", prompt, "prompt", "answers")

    def _batches(self, documents: Iterator[Document]) -> Iterator[list[Document]]:
        groups = together(documents)
        while some := list(islice(groups, self.rows_per_batch)):
            yield [each for group in some for each in group]

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        groups = list(together(documents))
        asked = [(group[0].id, said(self._shown(group))) for group in groups if len(group) > 1]
        answers = dict(zip((place for place, _ in asked), self.ask(self.model, asked), strict=True))
        outcomes: list[Outcome] = []
        for group in groups:
            chosen = self._chosen(group, answers[group[0].id][0]) if len(group) > 1 else 0
            for number, each in enumerate(group):
                if isinstance(chosen, Dropped):
                    outcomes.append(chosen)
                else:
                    outcomes.append(each.metadata if number == chosen else Dropped("not_selected"))
        return outcomes

    def _shown(self, group: Sequence[Document]) -> str:
        answers = [f"Answer {number}:\n{each.metadata.get('completion')}" for number, each in enumerate(group, 1)]
        prompt = text_of(group[0].metadata) or ""
        parts = {"prompt": prompt, "answers": "\n\n".join(answers), "count": str(len(group))}
        return filled(self.prompt, parts)

    def _chosen(self, group: Sequence[Document], answer: Answer) -> int | Dropped:
        if missing := answer.missing():
            return missing
        numbers = [int(found) for found in re.findall(r"\b\d{1,4}\b", answer.said)]
        return numbers[0] - 1 if numbers and 1 <= numbers[0] <= len(group) else Dropped("unreadable_reply")
