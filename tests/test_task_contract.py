"""The contract of every registered task, and proof that it catches broken ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from benchmark_rows import BENCHMARKS
from likelihood_rows import LIKELIHOODS

from lnlit import registry
from lnlit.builtins import BUILTINS
from lnlit.data.sources import JsonlSource
from lnlit.interfaces import GenerationTask, Question, Reward, RewardRequest, Task, TaskSampling
from lnlit.testing.plugin.task import Example
from lnlit.testing.task_contract import Case, check_task


def gsm8k(file: Callable[..., str]) -> tuple[dict[str, Any], list[Case]]:
    rows = [
        {"question": f"A hen lays {n} eggs a day. How many in 1000 days?", "answer": f"So.\n#### {n},000"}
        for n in range(1, 5)
    ]
    right = "<think>1 times 1000?</think>She lays \\boxed{1000}."
    cases = [(right, 1.0), ("It is 1,000", 1.0), ("\\boxed{1001}", 0.0), ("<think>1000", 0.0), ("", 0.0)]
    return {"source": JsonlSource(file(*rows))}, cases


#: name -> a function of `rows_file` that gives the arguments of a small task and cases for its first question.
SMALL: dict[str, Callable[[Callable[..., str]], tuple[dict[str, Any], list[Case]]]] = {
    "gsm8k": gsm8k,
    **BENCHMARKS,
    **LIKELIHOODS,
}


def test_every_task_is_tried():
    assert SMALL.keys() == BUILTINS["task"].keys()


@pytest.fixture
def rows_file(tmp_path) -> Callable[..., str]:
    """A function that writes rows to a JSONL file and returns its path."""
    import json

    def write(*rows: Mapping[str, Any], name: str = "rows.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", SMALL)
def test_a_task_keeps_its_contract(name: str, rows_file: Callable[..., str]):
    arguments, cases = SMALL[name](rows_file)
    check_task(lambda: registry.build("task", name, **arguments), cases)


class OneKey(Example):
    def questions(self) -> Iterator[Question]:
        return (Question("one", each.prompts, each.row) for each in super().questions())


class Shuffled(Example):
    calls = 0

    def questions(self) -> Iterator[Question]:
        self.calls += 1
        return iter([*super().questions()][self.calls :])


class Answered(Example):
    def questions(self) -> Iterator[Question]:
        for each in super().questions():
            yield Question(each.key, [[*each.prompts[0], {"role": "assistant", "content": "4"}]], each.row)


class GreedyTwice(Example):
    def sampling(self, thinking: str | None) -> TaskSampling:
        return TaskSampling(samples=2, max_new_tokens=8, temperature=0.0)


class Sends(Reward):
    def __init__(self) -> None:
        self.send = lambda text: 1.0

    def score(self, request: RewardRequest) -> float:
        return self.send(request.completion)


class Unpicklable(Example):
    def rewards(self) -> Mapping[str, Reward]:
        return {"accuracy": Sends()}


class ForgetsSamples(Example):
    def values(self, answers):
        return {name: column[:1] for name, column in super().values(answers).items()}


class Neither(Task):
    def questions(self) -> Iterator[Question]:
        return iter(())


@pytest.mark.parametrize(
    ("task", "promise"),
    [
        (OneKey, "two questions have one key"),
        (Shuffled, "a second pass gives other questions"),
        (Answered, "a prompt ends with a turn to answer"),
        (GreedyTwice, "greedy answers are all the same"),
        (Unpicklable, "reward accuracy: cannot be pickled"),
        (ForgetsSamples, "1 values for 3 samples"),
        (Neither, "is a GenerationTask or a LikelihoodTask"),
    ],
)
def test_a_broken_task_is_caught(task: type[GenerationTask], promise: str):
    check_task(Example)
    with pytest.raises(AssertionError, match=promise):
        check_task(task)


def test_a_wrong_verdict_is_caught():
    with pytest.raises(AssertionError, match=r"gives 0.0 instead of 1.0 to 'five'"):
        check_task(Example, [("five", 1.0)])
