"""Multiple-choice questions that a model writes, by topic, subtopic and difficulty (Llama-Nemotron section 3.1.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datatrove.data import Document

from lnlit.curation.asking import AskStep, check_prompt, filled, said
from lnlit.curation.model import Answer, Model
from lnlit.curation.rows import Row
from lnlit.curation.step import Dropped, Outcome
from lnlit.errors import UserError

_SUBTOPICS = """\
List {subtopics} subtopics of {topic} that an examination could be about. Write one on a line and nothing else."""
_QUESTION = """\
Write a multiple-choice question about {subtopic}, a part of {topic}. Its difficulty: {difficulty}. Exactly one choice
is right. Write it like this and nothing else:
Question: ...
A) ...
B) ...
C) ...
D) ...
Answer: LETTER"""
_VARIATION = """\
Below is a multiple-choice question. Write another one that it inspires: about the same matter, with another situation
or other numbers, and exactly one right choice. Write it in the same form and nothing else.

{question}"""
_FORM = re.compile(
    r"\A\W*Question:\s*(?P<question>\S.*?)\s*^\W*A[).:]\s*(?P<A>\S.*?)\s*^\W*B[).:]\s*(?P<B>\S.*?)\s*"
    r"^\W*C[).:]\s*(?P<C>\S.*?)\s*^\W*D[).:]\s*(?P<D>\S.*?)\s*^\W*Answer:\W*(?P<answer>[A-D])\b[^\n]*\Z",
    re.S | re.M,
)
_NEEDED = ("topic", "subtopic", "difficulty")
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])?\s*(\S.*?)\s*$", re.M)


def question_of(text: str) -> Row | None:
    """The row of a question in the form that the prompts ask for, or None if it is in another. Choices must differ."""
    found = _FORM.match(text.strip())
    if found is None or len({found[letter].strip().lower() for letter in "ABCD"}) < 4:
        return None
    choices = [found[letter] for letter in "ABCD"]
    listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    return {"prompt": f"{found['question']}\n\n{listed}", "answer": found["answer"], "choices": choices}


def _rows(documents: Sequence[Document]) -> list[Row]:
    return [each.metadata for each in documents]


class Subtopics(AskStep):
    """Makes a row for each subtopic of a row's `topic` and each difficulty.

    Args:
        model: The model that lists the subtopics.
        subtopics: How many it is asked for. What it lists beyond them, or twice, is left out.
        difficulties: The difficulties, in words.
        prompt: The prompt, with {topic} and {subtopics} in it.
        rows_per_batch: The number of topics that are asked together.
    """

    def __init__(
        self,
        model: Model,
        subtopics: int = 10,
        difficulties: Sequence[str] = ("easy", "medium", "hard"),
        prompt: str = _SUBTOPICS,
        rows_per_batch: int = 64,
    ) -> None:
        super().__init__(rows_per_batch)
        if subtopics < 1 or not difficulties:
            raise UserError("Subtopics: expected a positive number of subtopics and at least one difficulty")
        self.model, self.subtopics, self.difficulties = model, subtopics, list(difficulties)
        self.prompt = check_prompt("Subtopics", prompt, "topic").replace("{subtopics}", str(subtopics))

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        there = [each for each in documents if isinstance(each.metadata.get("topic"), str)]
        answers = dict(zip((each.id for each in there), self.ask_each(self.model, there, self.prompt), strict=True))
        return [self._outcome(each, answers.get(each.id)) for each in documents]

    def _outcome(self, document: Document, answer: Answer | None) -> Outcome:
        if answer is None:
            return Dropped("no_topic", "there is no text under topic")
        if missing := answer.missing():
            return missing
        listed = dict.fromkeys(_BULLET.findall(answer.said))
        return [
            {**document.metadata, "subtopic": subtopic, "difficulty": difficulty}
            for subtopic in list(listed)[: self.subtopics]
            for difficulty in self.difficulties
        ] or Dropped("no_subtopics")


class WriteQuestions(AskStep):
    """Writes a multiple-choice question for each row with a topic, subtopic and difficulty: `prompt`, `answer` (its
    letter) and `choices`. One in another form is dropped as `form`.

    Args:
        model: The model that writes them. Of several samples, each is a question.
        prompt: The prompt, with {topic}, {subtopic} and {difficulty} in it.
        rows_per_batch: The number of questions that are asked for together.
    """

    def __init__(self, model: Model, prompt: str = _QUESTION, rows_per_batch: int = 64) -> None:
        super().__init__(rows_per_batch)
        self.model, self.prompt = model, check_prompt("WriteQuestions", prompt, "topic", "subtopic", "difficulty")

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        there = [each for each in documents if all(isinstance(each.metadata.get(key), str) for key in _NEEDED)]
        asked = [(each.id, said(filled(self.prompt, each.metadata))) for each in there]
        answers = dict(zip((place for place, _ in asked), self.ask(self.model, asked, None), strict=True))
        return [self._outcome(each.metadata, answers.get(each.id)) for each in documents]

    def _outcome(self, row: Row, answers: Sequence[Answer] | None) -> Outcome:
        if answers is None:
            return Dropped("no_topic", f"{', '.join(_NEEDED)} have to be texts")
        missing = [answer.missing() for answer in answers]
        found = [question_of(answer.said) for answer, why in zip(answers, missing, strict=True) if why is None]
        rows = [{**row, **question} for question in found if question is not None]
        if rows and len(rows) < len(answers):
            self.stat_update("questions_left_out", value=len(answers) - len(rows))
        return rows or next((why for why in missing if why is not None), Dropped("form"))


class VaryQuestions(AskStep):
    """Adds variations of each question behind it (after OpenMathInstruct-2). Those in another form, and those that say
    what the question says, are left out and counted.

    Args:
        model: The model that varies them. Its `samples_per_prompt` is the number of variations.
        prompt: The prompt, with {question} in it.
        rows_per_batch: The number of questions that are varied together.
    """

    def __init__(self, model: Model, prompt: str = _VARIATION, rows_per_batch: int = 64) -> None:
        super().__init__(rows_per_batch)
        self.model, self.prompt = model, check_prompt("VaryQuestions", prompt, "question")

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        questions = [f"Question: {row.get('prompt')}\nAnswer: {row.get('answer')}" for row in _rows(documents)]
        asked = [
            (each.id, said(filled(self.prompt, {"question": question})))
            for each, question in zip(documents, questions, strict=True)
        ]
        outcomes: list[Outcome] = []
        for each, answers in zip(documents, self.ask(self.model, asked, None), strict=True):
            rows = [each.metadata]
            for answer in answers:
                found = None if answer.missing() else question_of(answer.said)
                if found is None or found["prompt"] in [row.get("prompt") for row in rows]:
                    self.stat_update("variations_left_out")
                else:
                    rows.append({**each.metadata, **found, "variation": True})
            outcomes.append(rows)
        return outcomes
