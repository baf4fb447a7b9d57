"""Every built-in reward keeps the contract, and the contract finds rewards that do not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import isolation
from fake_judge import FakeJudge, completion, parts

from lnlit import registry
from lnlit.builtins import BUILTINS
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, Reward, RewardRequest, RewardResult
from lnlit.rewards.pair_judge import Judge
from lnlit.testing.reward_contract import Case, check_reward

pytest.importorskip("pebble")


def case(completion: str, value: Any, system: str | None = None, **row: Any) -> Case:
    messages = [{"role": "system", "content": system}] if system else []
    return RewardRequest([*messages, {"role": "user", "content": "2 + 2?"}], completion, False, row), value


OBEY = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
NUMBER = {"type": "integer"}
ADD = {
    "function": [{"name": "add", "parameters": {"properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]}}],
    "ground_truth": [{"add": {"a": [2], "b": [2]}}],
}
CASES: dict[str, list[Case]] = {
    "format": [
        case("<think>a</think> b", 1, "detailed thinking on"),
        case("b", 0, "detailed thinking on"),
        case("b", 1, "detailed thinking off"),
        case("b", None),
    ],
    "math_answer": [case("It is 4.", 1, answer="4"), case("It is 5.", 0, answer="4"), case("", 0, answer="4")],
    "instructions": [case('"a"', 1, **OBEY), case("a", 0.5, **OBEY), case("a, b", 0, **OBEY)],
    "reasoning_gym": [
        case(r"<think>5</think> \boxed{4}", 1, task="chain_sum", answer="4"),
        case("5", 0, task="chain_sum", answer="4"),
        case("44", 0.5, task="gcd", answer="4"),
    ],
    "code_tests": [
        case("```python\ndef f(): return 4\n```", 1, test=["assert f() == 4"]),
        case("```python\ndef f(): return 5\n```", 0, test=["assert f() == 4"]),
    ],
    "choice": [
        case("So \\boxed{B. 4}", 1, answer="B"),
        case("The answer is A.", 0, answer="B"),
        case("", 0, answer="B"),
    ],
    "function_calls": [
        case("<TOOLCALL>[add(a=2, b=2)]</TOOLCALL>", 1, **ADD),
        case('<tool_call>{"name": "add", "arguments": {"a": 2, "b": "2"}}</tool_call>', 0, **ADD),
        case("It is 4.", 0, **ADD),
    ],
    "pair_judge": [case("It is 4.", 1, baseline="It is 5."), case("It is 5.", 0, baseline="It is 4.")],
    "llm_judge": [case("It is 4.", 1, answer="4"), case("It is 5.", 0, answer="4")],
    "reward_model": [case("It is 4.", ...), case("It is 5.", ...), case("It is 4, I think.", ...)],
}


@pytest.fixture
def arguments(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    judges = []

    def of(name: str) -> dict[str, Any]:
        if name == "llm_judge":
            pytest.importorskip("httpx2")
            judges.append(FakeJudge())
            return {"url": judges[0].url, "model": "fake", "retries": 0}
        if name == "pair_judge":
            pytest.importorskip("httpx2")
            judges.append(FakeJudge())
            judges[0].behave = compares
            return {"judge": Judge(judges[0].url, "fake", retries=0)}
        if name == "reward_model":
            return {"model": str(reward_model(tmp_path / "model")), "dtype": "float32", "device": "cpu"}
        if name == "code_tests":
            return {"isolation": isolation()}
        needs = {
            "instructions": ["langdetect", "punkt"],
            "reasoning_gym": ["reasoning_gym"],
            "math_answer": ["math_verify"],
        }
        for module in needs.get(name, []):
            pytest.importorskip(module)
        return {}

    yield of
    for judge in judges:
        judge.close()


def compares(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    """Prefers whichever answer has a 4 in it."""
    shown = parts(body)
    return 200, completion(f"I compare.\nVERDICT {shown['nonce']} {4 * ('4' in shown['second'])}")


def reward_model(folder: Path) -> Path:
    import torch

    from lnlit.models.reward_head import RewardHead, save_head
    from lnlit.testing.tiny import tiny_folder, tiny_spec

    tiny_folder(folder)
    head = RewardHead(tiny_spec().hidden_size)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    save_head(head, folder)
    return folder


@pytest.mark.parametrize("name", sorted(BUILTINS["reward"]))
def test_reward(name, arguments):
    given = arguments(name)
    check_reward(lambda: registry.build("reward", name, **given), CASES[name])


RIGHT = [case("good", 1.0), case("bad", 0.0), case("odd", None)]


class Good(Reward):
    """The ones below break one promise each."""

    time_limit_s = 5.0

    def score(self, request: RewardRequest) -> Any:
        return {"good": 1.0, "odd": None}.get(request.completion, 0.0)


class HoldsAFunction(Good):
    def __init__(self) -> None:
        self.how = lambda text: text


class Heavy(Good):
    def __init__(self) -> None:
        self.table = list(range(10**6))


class ByChance(Good):
    def score(self, request):
        value = super().score(request)
        return value if value is None else value + random.random()


class Counts(Good):
    """Knows that it has been asked before."""

    def __init__(self) -> None:
        self.asked = -1

    def score(self, request):
        self.asked += 1
        value = super().score(request)
        return value if value is None else value * 0.9 ** max(0, self.asked - 2)


class NotANumber(Good):
    def score(self, request):
        return float("nan") if request.completion == "bad" else super().score(request)


class Text(Good):
    def score(self, request):
        return str(super().score(request))


class Takes(Good):
    def score(self, request):
        request.messages.clear()  # type: ignore[attr-defined]
        return super().score(request)


class Wrong(Good):
    def score(self, request):
        return None if request.completion == "odd" else 1.0


class Stops(Good):
    def score(self, request):
        if not request.completion.strip():
            raise UserError("an empty completion")
        return super().score(request)


class Breaks(Good):
    def score(self, request):
        if "\x00" in request.completion:
            raise ValueError("embedded null byte")
        return super().score(request)


class OnlyHere(Good):
    """Works as long as nobody sends it away."""

    def __init__(self) -> None:
        self.here = True

    def __getstate__(self):
        return {"here": False}

    def score(self, request):
        return super().score(request) if self.here else 0.5


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (HoldsAFunction, "cannot be pickled"),
        (Heavy, "bytes when built"),
        (ByChance, "instead of|other numbers"),
        (Counts, "the same requests, other numbers"),
        (NotANumber, "a finite number or None, got nan"),
        (Text, "a finite number or None, got '1.0'"),
        (Takes, "changes the request"),
        (Wrong, "gives 1.0 instead of 0.0"),
        (Stops, "a completion stops the run: an empty completion"),
        (Breaks, "raised: .*embedded null byte"),
        (OnlyHere, "a copy in another process, other numbers"),
    ],
)
def test_a_broken_reward_is_caught(broken, promise):
    with pytest.raises(AssertionError, match=promise):
        check_reward(broken, RIGHT)


def test_a_good_reward_passes_and_cases_must_differ():
    check_reward(Good, RIGHT)
    with pytest.raises(AssertionError, match="all worth the same"):
        check_reward(Good, RIGHT[:1])


class GoodBatch(BatchReward):
    def __init__(self) -> None:
        self.open: list[int] | None = None

    def score_batch(self, requests):
        self.open = [1]
        return [RewardResult(Good().score(request)) for request in requests]

    def close(self) -> None:
        self.open = None


class Centred(GoodBatch):
    """Judges by the rest of the batch."""

    def score_batch(self, requests):
        values = [result.value for result in super().score_batch(requests)]
        known = [value for value in values if value is not None]
        mean = sum(known) / max(1, len(known)) - (0.5 if len(requests) > 1 else 0)
        return [RewardResult(value if value is None else value - mean) for value in values]


class Sorted(GoodBatch):
    def score_batch(self, requests):
        found = super().score_batch(requests)
        return found if found[:1] == [RewardResult(1.0)] else sorted(found, key=lambda result: -(result.value or 0))


class Loses(GoodBatch):
    def score_batch(self, requests):
        return [result for result in super().score_batch(requests) if result.value is not None]


class Bare(GoodBatch):
    def score_batch(self, requests):
        return [result.value for result in super().score_batch(requests)]


class NeedsOne(GoodBatch):
    def score_batch(self, requests):
        return super().score_batch([requests[0], *requests[1:]])


class ClosesOnce(GoodBatch):
    def close(self) -> None:
        if self.open is not None:
            self.open.pop()


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Centred, "requests one by one, other numbers"),
        (Sorted, "another order, other numbers"),
        (Loses, "2 results for 3 requests"),
        (Bare, "a result is a RewardResult"),
        (NeedsOne, "no requests, no results: list index out of range"),
        (ClosesOnce, "closes twice: pop from empty list"),
    ],
)
def test_a_broken_batch_reward_is_caught(broken, promise):
    check_reward(GoodBatch, RIGHT)
    with pytest.raises(AssertionError, match=promise):
        check_reward(broken, RIGHT)
