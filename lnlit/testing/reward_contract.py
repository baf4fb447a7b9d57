"""The contract of rewards, as a function for a test to call.

    from lnlit.testing.reward_contract import check_reward

    def test_contract():
        right = RewardRequest([{"role": "user", "content": "2 + 2?"}], "4", False, {"answer": "4"})
        check_reward(lambda: MyReward(), [(right, 1.0), (wrong, 0.0)])

Raises AssertionError naming the reward and the broken promise.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import EllipsisType

from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, Reward, RewardRequest, RewardResult
from lnlit.rewards.pool import RewardPool
from lnlit.testing.promises import copied, expect

#: The expected value for a request: a number, None for no verdict, or ... for any number.
Case = tuple[RewardRequest, float | EllipsisType | None]

#: Completions that a policy may well write. None is the setup's fault, so none may stop the run.
STRANGE = (
    "",
    " \n",
    "<think>",
    "</think>",
    "<think></think></think>",
    "\x00\ufffd\U0001f600\u2028",
    "\\boxed{" * 50,
    "((((" * 50,
    "9" * 5000,
    "```python\n",
    "```python\n```",
    "{answer} {nonce} {0} %s",
    "a" * 20000,
)
_BYTES = 2**16


def check_reward(make: Callable[[], Reward], cases: Sequence[Case], tolerance: float = 1e-4) -> None:
    """Checks a reward built by `make` on pairs (request, expected value) whose values differ. Values must agree within
    `tolerance`, because a model's arithmetic depends on the composition of its batches."""
    reward = make()
    label = type(reward).__name__
    _check_pickle(reward, label)
    expect(len({str(value) for _, value in cases}) > 1 or cases[0][1] is ..., label, "the cases are all worth the same")
    requests = [request for request, _ in cases]
    before = copy.deepcopy(requests)
    try:
        found = _scores(reward, requests, label)
        expect(requests == before, label, "changes the request")
        for request, value, (_, expected) in zip(requests, found, cases, strict=True):
            right = value is not None if expected is ... else _same([value], [expected], tolerance)
            expect(right, label, f"gives {value} instead of {expected} to {request.completion!r:.100}")
        again = {
            "the same requests": lambda: _scores(reward, requests, label),
            "another order": lambda: _scores(reward, requests[::-1], label)[::-1],
            "requests one by one": lambda: [_scores(reward, [request], label)[0] for request in requests],
            "a new reward": lambda: _scores(make(), requests, label),
            "a copy in another process": lambda: _pooled(make(), requests, label, ("none",)),
        }
        for what, give in again.items():
            other = give()
            expect(_same(other, found, tolerance), label, f"{what}, other numbers: {other} instead of {found}")
        strange = [replace(requests[0], completion=text, truncated=bool(text)) for text in STRANGE]
        _pooled(make(), strange, label, ("none", "timed_out", "exhausting"))
    finally:
        if isinstance(reward, BatchReward):
            reward.close()
    if isinstance(reward, BatchReward):
        _check_ends(make(), reward, label)


def _check_pickle(reward: Reward, label: str) -> None:
    """The reward is small when pickled: it is sent with every completion, so it must load heavy objects lazily."""
    copied(reward, label)
    size = len(pickle.dumps(reward))
    expect(size < _BYTES, label, f"has {size} bytes when built; read what is heavy on the first use")


def _check_ends(new: Reward, closed: BatchReward, label: str) -> None:
    assert isinstance(new, BatchReward)
    for what, end in {"no requests, no results": lambda: new.score_batch([]), "closes twice": closed.close}.items():
        try:
            expect(not end(), label, what)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{label}: {what}: {error}") from error
    new.close()


def _scores(reward: Reward, requests: Sequence[RewardRequest], label: str) -> list[float | None]:
    """Scores the requests in this process, where a modified request would be noticed."""
    if isinstance(reward, BatchReward):
        results = reward.score_batch(requests)
        expect(len(results) == len(requests), label, f"{len(results)} results for {len(requests)} requests")
        expect(all(isinstance(result, RewardResult) for result in results), label, "a result is a RewardResult")
        values = [result.value for result in results]
    else:
        values = [reward.score(request) for request in requests]
    for value in values:
        number = isinstance(value, (int, float)) and math.isfinite(value)
        expect(value is None or number, label, f"a reward is a finite number or None, got {value!r}")
    return values


def _pooled(
    reward: Reward, requests: Sequence[RewardRequest], label: str, allowed: Sequence[str]
) -> list[float | None]:
    """Scores the requests as a run does, and checks that no other outcome is counted than the allowed ones."""
    pool = RewardPool({label: reward}, workers=1)
    try:
        results = [row[label] for row in pool.score(requests)]
    except UserError as error:
        raise AssertionError(f"{label}: a completion stops the run: {error}") from error
    finally:
        pool.close()
    faults = {name.partition("/")[2] for name in pool.outcomes} - set(allowed)
    reasons = [result.error for result in results if result.value is None]
    expect(not faults, label, f"{' and '.join(sorted(faults))}: {reasons}")
    return [result.value for result in results]


def _same(one: Sequence[float | None], two: Sequence[float | EllipsisType | None], tolerance: float) -> bool:
    return all(
        a is b if a is None or b is None or b is ... else math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
        for a, b in zip(one, two, strict=True)
    )
