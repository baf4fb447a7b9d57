"""GSM8K: word problems of grade-school mathematics (Cobbe et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError
from lnlit.eval.protocol import SamplingProtocol, key_of, read_questions, text_of
from lnlit.eval.toggle import final_answer
from lnlit.interfaces import GenerationTask, Question, Reward, Source, TaskSampling
from lnlit.rewards.math_answer import MathAnswerReward
from lnlit.thinking import Thinking

#: The prompt that NVIDIA gives for mathematics in the model cards of Llama-Nemotron.
MATH_PROMPT = (
    "Below is a math question. I want you to reason through the steps and then give a final answer. Your final answer "
    "should be in \\boxed{{}}.\nQuestion: {question}"
)
_BEFORE_THE_ANSWER = "####"


class GSM8K(GenerationTask):
    """Word problems whose answer is a number.

    Args:
        source: Rows with `question` and `answer`, whose last line is `#### NUMBER`. By default the test set of
            `openai/gsm8k` on the Hugging Face hub.
        rows: The number of questions, from the first on; all if null.
        protocol: How answers are sampled.
    """

    def __init__(
        self, source: Source | None = None, rows: int | None = None, protocol: SamplingProtocol = SamplingProtocol()
    ) -> None:
        self.source = source or HuggingFaceSource("openai/gsm8k", "test", name="main")
        self.rows, self.protocol = rows, protocol

    def questions(self) -> Iterator[Question]:
        return read_questions(self.source, self.rows, _question)

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": MathAnswerReward()}

    def sampling(self, thinking: Thinking | None) -> TaskSampling:
        return self.protocol.of(thinking)

    def final_answer(self, text: str) -> str | None:
        return final_answer(text)


def _question(row: Mapping[str, Any]) -> Question:
    text, solution = text_of(row, "question"), text_of(row, "answer")
    _, mark, answer = solution.rpartition(_BEFORE_THE_ANSWER)
    if not mark or not answer.strip():
        raise UserError(f"answer: got {solution[-60:]!r}; expected a solution that ends in `{_BEFORE_THE_ANSWER} 18`.")
    prompt = [{"role": "user", "content": MATH_PROMPT.format(question=text)}]
    return Question(key_of(text), [prompt], {**row, "answer": answer.strip().replace(",", "")})
