"""Benchmarks of mathematics: a prompt that asks for a box, answers compared by value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError
from lnlit.eval.protocol import SamplingProtocol, key_of, text_of
from lnlit.eval.tasks.benchmark import Benchmark, user
from lnlit.interfaces import Question, Reward, Source
from lnlit.rewards.math_answer import MathAnswerReward

#: The prompt that NVIDIA gives for mathematics in the model cards of Llama-Nemotron.
MATH_PROMPT = (
    "Below is a math question. I want you to reason through the steps and then give a final answer. Your final answer "
    "should be in \\boxed{{}}.\nQuestion: {question}"
)
_BEFORE_THE_ANSWER = "####"


class Mathematics(Benchmark):
    """The base class of benchmarks of mathematics, whose rows have an `answer`."""

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": MathAnswerReward()}

    def asked(self, problem: str, row: Mapping[str, Any], key: str, group: str = "") -> Question:
        """The question for a problem. `row` has its answer."""
        return Question(key, [user(MATH_PROMPT.format(question=problem))], row, group)


class GSM8K(Mathematics):
    """Word problems of grade-school mathematics (Cobbe et al. 2021), whose answer is a number.

    Args:
        source: Rows with `question` and `answer`, whose last line is `#### NUMBER`. By default the test set of
            `openai/gsm8k` on the Hugging Face hub.
    """

    def public(self) -> Source:
        return HuggingFaceSource("openai/gsm8k", "test", name="main")

    def question(self, row: Mapping[str, Any]) -> Question:
        text, solution = text_of(row, "question"), text_of(row, "answer")
        _, mark, answer = solution.rpartition(_BEFORE_THE_ANSWER)
        if not mark or not answer.strip():
            raise UserError(
                f"answer: got {solution[-60:]!r}; expected a solution that ends in `{_BEFORE_THE_ANSWER} 18`."
            )
        return self.asked(text, {**row, "answer": answer.strip().replace(",", "")}, key_of(text))


class MATH500(Mathematics):
    """MATH-500: problems of competitions (Hendrycks et al. 2021), of those that Lightman et al. 2023 held out, whose
    answer is an expression, grouped by subject.

    Args:
        source: Rows with `problem` and `answer`, perhaps with `subject`, `level` and `unique_id`. By default
            `HuggingFaceH4/MATH-500` on the Hugging Face hub.
    """

    def public(self) -> Source:
        return HuggingFaceSource("HuggingFaceH4/MATH-500", "test")

    def question(self, row: Mapping[str, Any]) -> Question:
        problem, answer = text_of(row, "problem"), text_of(row, "answer")
        return self.asked(problem, {**row, "answer": answer}, key_of(problem), str(row.get("subject") or ""))


#: The paper's protocol, with as many samples as it ever takes: 30 problems are few.
SIXTEEN = SamplingProtocol(samples=16)


class AIME24(Mathematics):
    """The 30 problems of the American Invitational Mathematics Examination of 2024. Answers are whole numbers below
    1000.

    Args:
        source: Rows with `problem` and `answer`, which may be called `expected_answer`. By default
            `HuggingFaceH4/aime_2024` on the Hugging Face hub.
    """

    def __init__(
        self, source: Source | None = None, rows: int | None = None, protocol: SamplingProtocol = SIXTEEN
    ) -> None:
        super().__init__(source, rows, protocol)

    def public(self) -> Source:
        return HuggingFaceSource("HuggingFaceH4/aime_2024", "train")

    def question(self, row: Mapping[str, Any]) -> Question:
        problem, given = text_of(row, "problem"), row.get("answer", row.get("expected_answer"))
        answer = str(given).strip()
        if not (answer.isascii() and answer.isdecimal()) or int(answer) > 999:
            raise UserError(f"answer: got {given!r:.80}; expected a whole number from 0 to 999.")
        return self.asked(problem, {**row, "answer": str(int(answer))}, key_of(problem))


class AIME25(AIME24):
    """The 30 problems of 2025.

    Args:
        source: Rows with `problem` and `answer`, which may be called `expected_answer`. By default `math-ai/aime25` on
            the Hugging Face hub.
    """

    def public(self) -> Source:
        return HuggingFaceSource("math-ai/aime25", "test")
