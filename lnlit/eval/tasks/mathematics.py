"""What benchmarks of mathematics share: a prompt that asks for a box, answers compared by value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.eval.tasks.benchmark import Benchmark, user
from lnlit.eval.toggle import canonical_answer
from lnlit.interfaces import Question, Reward
from lnlit.rewards.math_answer import MathAnswerReward

#: The prompt that NVIDIA gives for mathematics in the model cards of Llama-Nemotron.
MATH_PROMPT = (
    "Below is a math question. I want you to reason through the steps and then give a final answer. Your final answer "
    "should be in \\boxed{{}}.\nQuestion: {question}"
)


class Mathematics(Benchmark):
    """The base class of benchmarks of mathematics, whose rows have an `answer`."""

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": MathAnswerReward()}

    def final_answer(self, text: str) -> str | None:
        return canonical_answer(text)

    def asked(self, problem: str, row: Mapping[str, Any], key: str, group: str = "") -> Question:
        """The question for a problem. `row` has its answer."""
        return Question(key, [user(MATH_PROMPT.format(question=problem))], row, group)
