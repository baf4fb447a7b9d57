"""MMLU (Hendrycks et al. 2021) asked without examples, whose answer is a letter that the model writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError, shown
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.benchmark import Benchmark, user
from lnlit.interfaces import Question, Reward, Source
from lnlit.rewards.choice import ChoiceReward, chosen

_PROMPT = """Answer this multiple-choice question. Think step by step if you need to, and put the letter of the right \
choice into \\boxed{{}}.

{question}

{choices}"""


class MMLUGenerative(Benchmark):
    """Questions with four choices, grouped by subject.

    Args:
        source: Rows with `question`, `choices`, `answer` (an index from 0 or a letter) and `subject`. By default the
            test set of `cais/mmlu` on the Hugging Face hub.
        rows: The number of questions, equally many of each subject; all if null.
        protocol: How answers are sampled.
    """

    SORTED_BY_GROUP = True

    def public(self) -> Source:
        return HuggingFaceSource("cais/mmlu", "test", name="all")

    def question(self, row: Mapping[str, Any]) -> Question:
        question, choices, answer = text_of(row, "question"), row.get("choices"), row.get("answer")
        if not isinstance(choices, list) or not 2 <= len(choices) <= 26:
            raise UserError(f"choices: expected a list of 2 to 26 texts, got {shown(choices)}.")
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters):
            answer = letters[answer]
        if not isinstance(answer, str) or len(answer) != 1 or answer not in letters:
            raise UserError(f"answer: got {answer!r:.80}; expected a letter of {letters} or an index from 0.")
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
        subject = str(row.get("subject") or "")
        prompt = _PROMPT.format(question=question, choices=listed)
        return Question(key_of(subject, question, listed), [user(prompt)], {**row, "answer": answer}, subject)

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": ChoiceReward()}

    def final_answer(self, text: str) -> str | None:
        return chosen(text)
