"""From posts to problems with answers, by a model (Llama-Nemotron section 3.1.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datatrove.data import Document

from lnlit.curation.asking import AskStep, check_prompt, filled, said
from lnlit.curation.model import Model
from lnlit.curation.rows import text_of
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


class ExtractProblems(AskStep):
    """Makes a row for each problem in a post, with the problem as its `prompt`. Other columns are kept.

    Args:
        model: The model that is asked.
        column: The column of the posts. Null takes what rows ask.
        prompt: The prompt, with {post} in it. The answer has problems between <problem> tags, or the word NONE.
        rows_per_batch: The number of rows that are asked together.
    """

    def __init__(
        self, model: Model, column: str | None = None, prompt: str = _EXTRACT, rows_per_batch: int = 64
    ) -> None:
        super().__init__(rows_per_batch)
        self.model, self.column, self.prompt = model, column, check_prompt("ExtractProblems", prompt, "post")

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        outcomes: dict[str, Outcome] = {}
        posts = {each.id: text_of(each.metadata, self.column) for each in documents}
        asked = [(place, said(filled(self.prompt, {"post": post}))) for place, post in posts.items() if post]
        answers = dict(zip((place for place, _ in asked), self.ask(self.model, asked), strict=True))
        for each in documents:
            if each.id not in answers:
                outcomes[each.id] = Dropped("no_text", f"there is no text in {self.column or 'what it asks'}")
                continue
            answer = answers[each.id][0]
            problems = [problem.strip() for problem in _PROBLEM.findall(answer.said) if problem.strip()]
            rest = {key: value for key, value in each.metadata.items() if key != "messages"}
            if missing := answer.missing():
                outcomes[each.id] = missing
            elif problems:
                outcomes[each.id] = [{**rest, "prompt": problem} for problem in problems]
            else:
                outcomes[each.id] = Dropped("no_problem" if _NONE.search(answer.said) else "unreadable_reply")
        return [outcomes[each.id] for each in documents]


class ClassifyProblems(AskStep):
    """Drops problems of some kinds, each counted, and keeps the kinds of the others under `kinds`.

    Args:
        model: The model that is asked.
        drop: The kinds that are dropped: proof, multiple_choice, yes_no, invalid. The paper drops all.
        column: The column of the problems. Null takes what rows ask.
        prompt: The prompt, with {problem} in it. The answer has a line such as `proof: yes` for each kind.
        rows_per_batch: The number of rows that are asked together.
    """

    def __init__(
        self,
        model: Model,
        drop: Sequence[str] = KINDS,
        column: str | None = None,
        prompt: str = _CLASSIFY,
        rows_per_batch: int = 64,
    ) -> None:
        super().__init__(rows_per_batch)
        if unknown := [kind for kind in drop if kind not in KINDS]:
            raise UserError(f"ClassifyProblems.drop: unknown kind {unknown[0]!r}. Allowed: {', '.join(KINDS)}.")
        self.model, self.drop, self.column = model, list(drop), column
        self.prompt = check_prompt("ClassifyProblems", prompt, "problem")

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        problems = [text_of(each.metadata, self.column) or "" for each in documents]
        asked = [
            (each.id, said(filled(self.prompt, {"problem": problem})))
            for each, problem in zip(documents, problems, strict=True)
        ]
        outcomes: list[Outcome] = []
        for each, (answer,) in zip(documents, self.ask(self.model, asked), strict=True):
            found = {kind: re.search(rf"(?im)^\W*{kind}\W+(yes|no)\b", answer.said) for kind in KINDS}
            kinds = [kind for kind, match in found.items() if match and match[1].lower() == "yes"]
            unwanted = next((kind for kind in kinds if kind in self.drop), None)
            if missing := answer.missing():
                outcomes.append(missing)
            elif unwanted:
                outcomes.append(Dropped(unwanted))
            elif not all(found.values()):
                outcomes.append(Dropped("unreadable_reply"))
            else:
                outcomes.append({**each.metadata, "kinds": kinds})
        return outcomes


class ExtractAnswer(AskStep):
    """Writes the final answer that a discussion reaches into a column. A row whose discussion reaches none is kept
    without one, for a majority vote.

    Args:
        model: The model that is asked.
        discussion: The column of the discussion.
        column: The column of the problem. Null takes what rows ask.
        out: The column of the answer.
        prompt: The prompt, with {problem} and {discussion} in it. The answer has a box, or the word NONE.
        rows_per_batch: The number of rows that are asked together.
    """

    def __init__(
        self,
        model: Model,
        discussion: str,
        column: str | None = None,
        out: str = "answer",
        prompt: str = _ANSWER,
        rows_per_batch: int = 64,
    ) -> None:
        super().__init__(rows_per_batch)
        self.model, self.discussion, self.column, self.out = model, discussion, column, out
        self.prompt = check_prompt("ExtractAnswer", prompt, "problem", "discussion")

    def batch(self, documents: Sequence[Document]) -> list[Outcome]:
        asked = [
            (
                each.id,
                said(
                    filled(
                        self.prompt,
                        {
                            "problem": text_of(each.metadata, self.column) or "",
                            "discussion": text_of(each.metadata, self.discussion) or "",
                        },
                    )
                ),
            )
            for each in documents
        ]
        outcomes: list[Outcome] = []
        for each, (answer,) in zip(documents, self.ask(self.model, asked), strict=True):
            boxed = last_boxed(answer.said)
            if missing := answer.missing():
                outcomes.append(missing)
            elif boxed is None and not _NONE.search(answer.said):
                outcomes.append(Dropped("unreadable_reply"))
            else:
                if boxed is None:
                    self.stat_update("without_an_answer")
                outcomes.append({**each.metadata, self.out: boxed[1].strip() if boxed else None})
        return outcomes
