"""Multiple-choice questions that a model writes, by topic, subtopic and difficulty (Llama-Nemotron section 3.1.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lnlit.curation.asking import AskEach
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

Question: {prompt}
Answer: {answer}"""
_FORM = re.compile(
    r"\A\W*Question:\s*(?P<question>\S.*?)\s*^\W*A[).:]\s*(?P<A>\S.*?)\s*^\W*B[).:]\s*(?P<B>\S.*?)\s*"
    r"^\W*C[).:]\s*(?P<C>\S.*?)\s*^\W*D[).:]\s*(?P<D>\S.*?)\s*^\W*Answer:\W*(?P<answer>[A-D])\b[^\n]*\Z",
    re.S | re.M,
)
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])?\s*(\S.*?)\s*$", re.M)


def question_of(text: str) -> Row | None:
    """The row of a question in the form that the prompts ask for, or None if it is in another. Choices must differ."""
    found = _FORM.match(text.strip())
    if found is None or len({found[letter].strip().lower() for letter in "ABCD"}) < 4:
        return None
    choices = [found[letter] for letter in "ABCD"]
    listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    return {"prompt": f"{found['question']}\n\n{listed}", "answer": found["answer"], "choices": choices}


class Subtopics(AskEach):
    """Makes a row for each subtopic of a row's `topic` and each difficulty.

    Args:
        model: The model that lists the subtopics.
        subtopics: How many it is asked for. What it lists beyond them, or twice, is left out.
        difficulties: The difficulties, in words.
        prompt: The prompt, with {topic} and {subtopics} in it.
    """

    def __init__(
        self,
        model: Model,
        subtopics: int = 10,
        difficulties: Sequence[str] = ("easy", "medium", "hard"),
        prompt: str = _SUBTOPICS,
        rows_per_batch: int = 64,
    ) -> None:
        prompt = prompt.replace("{subtopics}", str(subtopics))
        super().__init__(model, prompt, {"topic": "topic"}, rows_per_batch)
        if subtopics < 1 or not difficulties:
            raise UserError("Subtopics: expected a positive number of subtopics and at least one difficulty")
        self.subtopics, self.difficulties = subtopics, list(difficulties)

    def read(self, row: Row, answers: Sequence[Answer]) -> Outcome:
        listed = dict.fromkeys(_BULLET.findall(answers[0].said))
        return [
            {**row, "subtopic": subtopic, "difficulty": difficulty}
            for subtopic in list(listed)[: self.subtopics]
            for difficulty in self.difficulties
        ] or Dropped("no_subtopics")


class WriteQuestions(AskEach):
    """Writes a multiple-choice question for each row with a topic, subtopic and difficulty: `prompt`, `answer` (its
    letter) and `choices`. One in another form is dropped as `form`.

    Args:
        model: The model that writes them. Of several samples, each is a question.
        prompt: The prompt, with {topic}, {subtopic} and {difficulty} in it.
    """

    SAMPLES = None

    def __init__(self, model: Model, prompt: str = _QUESTION, rows_per_batch: int = 64) -> None:
        needed = {name: name for name in ("topic", "subtopic", "difficulty")}
        super().__init__(model, prompt, needed, rows_per_batch)

    def read(self, row: Row, answers: Sequence[Answer]) -> Outcome:
        found = [question_of(answer.said) for answer in answers]
        rows = [{**row, **question} for question in found if question is not None]
        if rows and len(rows) < len(found):
            self.stat_update("questions_left_out", value=len(found) - len(rows))
        return rows or Dropped("form")


class VaryQuestions(AskEach):
    """Adds variations of each question behind it (after OpenMathInstruct-2). Those in another form, and those that say
    what the question says, are left out and counted.

    Args:
        model: The model that varies them. Its `samples_per_prompt` is the number of variations.
        prompt: The prompt, with {prompt} in it.
    """

    SAMPLES = None

    def __init__(self, model: Model, prompt: str = _VARIATION, rows_per_batch: int = 64) -> None:
        super().__init__(model, prompt, {"prompt": "prompt"}, rows_per_batch)

    def unanswered(self, row: Row, why: Dropped) -> Outcome:
        self.stat_update("not_varied")
        return [row]

    def read(self, row: Row, answers: Sequence[Answer]) -> Outcome:
        rows = [row]
        for found in (question_of(answer.said) for answer in answers):
            if found is None or found["prompt"] in [each.get("prompt") for each in rows]:
                self.stat_update("variations_left_out")
            else:
                rows.append({**row, **found, "variation": True})
        return rows
