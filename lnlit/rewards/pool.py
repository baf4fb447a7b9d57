"""Rewards in processes of their own, which may be killed: a verifier that hangs or crashes costs one sample."""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as OutOfTime
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import Reward, RewardRequest, RewardResult


class RewardPool:
    """Scores completions by several rewards at once. Every outcome but a number is counted by its kind: "none",
    "raised", "timed_out", "crashed". A reward's own `UserError` stops the run.

    Args:
        rewards: name -> reward.
        workers: processes.
    """

    def __init__(self, rewards: Mapping[str, Reward], workers: int) -> None:
        if not rewards or workers < 1:
            raise UserError(f"rewards: needs at least one reward and one worker, got {len(rewards)} and {workers}")
        self.rewards, self.workers = dict(rewards), workers
        self.outcomes: Counter[str] = Counter()
        self._pool: Any = None

    def score(self, requests: Sequence[RewardRequest]) -> list[dict[str, RewardResult]]:
        """For each request what each reward says, by name."""
        if self._pool is None:
            # Processes that begin empty: a copy of a trainer with its threads would deadlock, and hold GPU memory.
            self._pool = _pebble().ProcessPool(self.workers, context=multiprocessing.get_context("spawn"))
        futures = [
            {
                name: self._pool.schedule(_score, (reward, request), timeout=reward.time_limit_s)
                for name, reward in self.rewards.items()
            }
            for request in requests
        ]
        return [{name: self._result(name, future) for name, future in row.items()} for row in futures]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _result(self, name: str, future: Any) -> RewardResult:
        try:
            value = future.result()
        except OutOfTime:
            kind, error = "timed_out", f"took longer than {self.rewards[name].time_limit_s} s"
        except _pebble().ProcessExpired as expired:
            kind, error = "crashed", f"its process ended with exit code {expired.exitcode}"
        except UserError:  # the run is set up wrongly, and would be for every sample
            raise
        except Exception as problem:
            kind, error = "raised", f"{type(problem).__name__}: {problem}"
        else:
            if value is not None:
                return RewardResult(value)
            kind, error = "none", "gave no reward"
        self.outcomes[f"{name}/{kind}"] += 1
        return RewardResult(None, error)


def _score(reward: Reward, request: RewardRequest) -> float | None:
    value = reward.score(request)
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {value!r}")
    return number


def _pebble() -> Any:
    try:
        import pebble
    except ImportError as error:
        raise UserError(
            "rewards run in processes of pebble, which is not installed: pip install 'lnlit[rl]'"
        ) from error
    return pebble
