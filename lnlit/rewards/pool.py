"""Rewards in processes of their own, which may be killed: a verifier that hangs or crashes costs one sample."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as OutOfTime
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, Reward, RewardRequest, RewardResult


def _not_started() -> UserError:
    said = "rewards: the processes that judge did not start. They import "
    if hasattr(sys.modules["__main__"], "__file__"):
        end = 'the script that started the run, so what it does must stand below `if __name__ == "__main__":`'
    else:
        end = "rewards from where these are defined: put yours in a module, or make it a BatchReward, which needs none"
    return UserError(said + end)


class RewardPool:
    """Scores completions by several rewards at once. Every outcome but a number is counted by its kind: "none",
    "not_finite", "raised", "timed_out", "crashed", "wrong_length". A reward's own `UserError` stops the run.

    Args:
        rewards: name -> reward.
        workers: processes.
    """

    def __init__(self, rewards: Mapping[str, Reward], workers: int) -> None:
        if not rewards or workers < 1:
            raise UserError(f"rewards: needs at least one reward and one worker, got {len(rewards)} and {workers}")
        self.rewards, self.workers = dict(rewards), workers
        self.outcomes: Counter[str] = Counter()

    def score(self, requests: Sequence[RewardRequest]) -> list[dict[str, RewardResult]]:
        """For each request what each reward says, by name."""
        try:
            futures = {
                name: [
                    self._processes.schedule(_score, (reward, request), timeout=reward.time_limit_s)
                    for request in requests
                ]
                for name, reward in self.rewards.items()
                if not isinstance(reward, BatchReward)
            }
        except RuntimeError as error:
            raise _not_started() from error
        found = {  # while the processes work
            name: self._batch(name, reward, requests)
            for name, reward in self.rewards.items()
            if isinstance(reward, BatchReward)
        }
        found |= {name: [self._result(name, future) for future in row] for name, row in futures.items()}
        return [{name: found[name][index] for name in self.rewards} for index in range(len(requests))]

    def close(self) -> None:
        """Close every reward and end the processes, also where closing one of them fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._stop)
            for reward in self.rewards.values():
                if isinstance(reward, BatchReward):
                    stack.callback(reward.close)

    def _stop(self) -> None:
        if "_processes" in vars(self):
            self._processes.stop()
            self._processes.join()
            del self._processes

    @cached_property
    def _processes(self) -> Any:
        # They begin empty: a copy of a trainer with its threads would deadlock, and hold GPU memory.
        return _pebble().ProcessPool(self.workers, context=multiprocessing.get_context("spawn"))

    def _batch(self, name: str, reward: BatchReward, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        try:
            found = list(reward.score_batch(requests))
        except UserError:
            raise
        except Exception as problem:
            return [self._without(name, "raised", f"{type(problem).__name__}: {problem}") for _ in requests]
        if len(found) != len(requests):
            error = f"gave {len(found)} results for {len(requests)} completions"
            return [self._without(name, "wrong_length", error) for _ in requests]
        return [self._checked(name, result) for result in found]

    def _result(self, name: str, future: Any) -> RewardResult:
        try:
            value, problem = future.result()
            return self._without(name, "raised", problem) if problem else self._checked(name, RewardResult(value))
        except OutOfTime:
            return self._without(name, "timed_out", f"took longer than {self.rewards[name].time_limit_s} s")
        except _pebble().ProcessExpired as expired:
            return self._without(name, "crashed", f"its process ended with exit code {expired.exitcode}")
        except UserError:  # the run is set up wrongly, and would be for every sample
            raise
        except BrokenProcessPool as error:
            raise _not_started() from error
        except Exception as problem:
            return self._without(name, "raised", f"{type(problem).__name__}: {problem}")

    def _checked(self, name: str, result: RewardResult) -> RewardResult:
        if result.value is None:
            return self._without(name, "none", result.error or "gave no reward")
        if not math.isfinite(result.value):
            return self._without(name, "not_finite", f"gave {result.value}")
        return result

    def _without(self, name: str, kind: str, error: str) -> RewardResult:
        self.outcomes[f"{name}/{kind}"] += 1
        if self.outcomes[f"{name}/{kind}"] == 1:
            warnings.warn(f"rewards/{name}/{kind}, counted from now on; the first: {error}", stacklevel=2)
        return RewardResult(None, error)


def _score(reward: Reward, request: RewardRequest) -> tuple[float | None, str | None]:
    """(reward, what went wrong): in words, since some exceptions cannot be sent, and `sys.exit` means the worker."""
    try:
        value = reward.score(request)
        return None if value is None else float(value), None
    except UserError:
        raise
    except BaseException as problem:
        return None, f"{type(problem).__name__}: {problem}"


def _pebble() -> Any:
    try:
        import pebble
    except ImportError as error:
        raise UserError(
            "rewards run in processes of pebble, which is not installed: pip install 'lnlit[rl]'"
        ) from error
    return pebble
