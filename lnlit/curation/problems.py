"""From posts to problems with answers, by a model (Llama-Nemotron section 3.1.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lnlit.curation.asking import AskEach
from lnlit.curation.model import Answer, Model
from lnlit.curation.rows import Row
from lnlit.curation.step import Dropped, Outcome
from lnlit.errors import UserError
from lnlit.thinking import last_boxed

_EXTRACT = """\
Below is a post of a forum. Copy every problem that it poses, word for word, without solutions and without remarks.
Write each as <problem>...</problem>. If there is none, write NONE.

Post:
{post}"""
_CLASSIFY = """\
Below is a problem. Answer four questions about it, each on a line of its own as NAME: yes or NAME: no.
proof: does it ask to prove or to show something?
multiple_choice: does it offer answers to choose from?
yes_no: is its answer yes or no, or true or false?
invalid: does it lack what is needed to solve it, or refer to something that is not there?

Problem:
{problem}"""
_ANSWER = """\
Below are a problem and a discussion of it. Write the final answer that the discussion reaches as \\boxed{...}, the
expression alone, without its solution. If it reaches none, write NONE.

Problem:
{problem}

Discussion:
{discussion}"""
_PROBLEM = re.compile(r"<problem>(.*?)</problem>", re.S)
_NONE = re.compile(r"\bNONE\b")
#: The kinds of problems whose answers cannot be checked, or guessed too easily.
KINDS = ("proof", "multiple_choice", "yes_no", "invalid")


class ExtractProblems(AskEach):
    """Makes a row for each problem in a post, with the problem as its `prompt`. Other columns are kept.

    Args:
        column: The column of the posts. Null takes what rows ask.
        prompt: The prompt, with {post} in it. The answer has problems between <problem> tags, or the word NONE.
    """

    def __init__(
        self, model: Model, column: str | None = None, prompt: str = _EXTRACT, rows_per_batch: int = 64
    ) -> None:
        super().__init__(model, prompt, {"post": column}, rows_per_batch)

    def read(self, row: Row, answers: Sequence[Answer]) -> Outcome:
        reply = answers[0].said
        problems = [problem.strip() for problem in _PROBLEM.findall(reply) if problem.strip()]
        if not problems:
            return Dropped("no_problem" if _NONE.search(reply) else "unreadable_reply")
        rest = {key: value for key, value in row.items() if key != "messages"}
        return [{**rest, "prompt": problem} for problem in problems]


class ClassifyProblems(AskEach):
    """Drops problems of some kinds, each counted, and keeps the kinds of the others under `kinds`.

    Args:
        drop: The kinds that are dropped: proof, multiple_choice, yes_no, invalid. The paper drops all.
        column: The column of the problems. Null takes what rows ask.
        prompt: The prompt, with {problem} in it. The answer has a line such as `proof: yes` for each kind.
    """

    def __init__(
        self,
        model: Model,
        drop: Sequence[str] = KINDS,
        column: str | None = None,
        prompt: str = _CLASSIFY,
        rows_per_batch: int = 64,
    ) -> None:
        super().__init__(model, prompt, {"problem": column}, rows_per_batch)
        if unknown := [kind for kind in drop if kind not in KINDS]:
            raise UserError(f"ClassifyProblems.drop: unknown kind {unknown[0]!r}. Allowed: {', '.join(KINDS)}.")
        self.drop = list(drop)

    def read(self, row: Row, answers: Sequence[Answer]) -> Outcome:
        found = {kind: re.search(rf"(?im)^\W*{kind}\W+(yes|no)\b", answers[0].said) for kind in KINDS}
        kinds = [kind for kind, match in found.items() if match and match[1].lower() == "yes"]
        if unwanted := next((kind for kind in kinds if kind in self.drop), None):
            return Dropped(unwanted)
        return {**row, "kinds": kinds} if all(found.values()) else Dropped("unreadable_reply")


class ExtractAnswer(AskEach):
    """Writes the final answer that a discussion reaches under `answer`. A row whose discussion reaches none is kept
    without one, for a majority vote.

    Args:
        discussion: The column of the discussion.
        column: The column of the problem. Null takes what rows ask.
        prompt: The prompt, with {problem} and {discussion} in it. The answer has a box, or the word NONE.
    """

    def __init__(
        self,
        model: Model,
        discussion: str,
        column: str | None = None,
        prompt: str = _ANSWER,
        rows_per_batch: int = 64,
    ) -> None:
        super().__init__(model, prompt, {"problem": column, "discussion": discussion}, rows_per_batch)

    def read(self, row: Row, answers: Sequence[Answer]) -> Outcome:
        boxed = last_boxed(answers[0].said)
        if boxed is None and not _NONE.search(answers[0].said):
            return Dropped("unreadable_reply")
        if boxed is None:
            self.stat_update("without_an_answer")
        return {**row, "answer": boxed[1].strip() if boxed else None}
