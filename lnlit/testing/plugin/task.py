"""A benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lnlit.interfaces import GenerationTask, Question, Reward, RewardRequest, TaskSampling


class Sums(Reward):
    """The reward is 1 if the completion ends with the row's answer, else 0."""

    def score(self, request: RewardRequest) -> float:
        return float(request.completion.rstrip(" .\n").endswith(str(request.row["answer"])))


class Example(GenerationTask):
    """Additions of numbers below ten.

    Args:
        questions_asked: The number of questions.
    """

    def __init__(self, questions_asked: int = 20) -> None:
        self.questions_asked = questions_asked

    def questions(self) -> Iterator[Question]:
        for number in range(self.questions_asked):
            one, other = number % 10, number * 7 % 9
            prompt = [{"role": "user", "content": f"What is {one} + {other}? Answer with the number alone."}]
            yield Question(key=str(number), prompts=[prompt], row={"answer": str(one + other)})

    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": Sums()}

    def sampling(self, thinking: str | None) -> TaskSampling:
        if thinking == "on":
            return TaskSampling(samples=4, max_new_tokens=2048, temperature=0.6, top_p=0.95)
        return TaskSampling(samples=1, max_new_tokens=64, temperature=0.0)
