"""Runs rewards in other processes, which may be killed: a verifier that hangs or crashes costs one sample."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as OutOfTime
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cached_property
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, NamedTuple, SupportsFloat

from lnlit import own
from lnlit.errors import UserError, optional
from lnlit.interfaces import BatchReward, NoVerdictError, Reward, RewardRequest, RewardResult

#: What a process may take to warm up: so many times the limit of a completion, and at most so many seconds.
_WARM_UP_TIMES, _WARM_UP_S = 20.0, 60.0

#: The reward of a completion that exhausted the limits of judging it.
_EXHAUSTING = 0.0


def _not_started() -> UserError:
    said = "rewards: the processes that judge did not start. They import "
    if hasattr(sys.modules["__main__"], "__file__"):
        end = 'the script that started the run, so what it does must stand below `if __name__ == "__main__":`'
    else:
        end = "rewards from where these are defined: put yours in a module, or make it a BatchReward, which needs none"
    return UserError(said + end)


def _sendable(name: str, reward: Reward) -> Reward | bytes:
    """The reward in the form that is sent to a process, which imports it from the module that defines it. If that is a
    notebook's cell, which cannot be imported, the code is sent along."""
    if isinstance(reward, BatchReward) or hasattr(sys.modules["__main__"], "__file__"):
        return reward
    import dill

    try:
        return dill.dumps(reward, recurse=True)
    except Exception as error:
        raise UserError(
            f"rewards.{name}: cannot be sent to the processes that judge ({type(error).__name__}: {error}). Put it in "
            "a file of its own, or make it a BatchReward, which needs none."
        ) from error


def why_not(rewards: Iterable[Reward], row: Mapping[str, Any]) -> str | None:
    """The reason why no completion could be judged by a row, as far as the rewards can tell without one; else None."""
    try:
        for reward in rewards:
            reward.check_row(row)
    except UserError as error:
        return str(error)
    return None


class _Outcome(NamedTuple):
    """The outcome for one completion: a value, or the kind of failure with its reason. `exhausted` is true if the
    completion or the verifier used up time or memory or killed the process."""

    value: float | None
    kind: str = ""
    why: str = ""
    exhausted: bool = False


class RewardPool:
    """Scores completions by several rewards at once. Every outcome that is not a number is counted by kind: "none",
    "not_finite", "wrong_type", "raised", "timed_out", "crashed", "wrong_length", and the names that `NoVerdictError`s
    give themselves. A `UserError` of a reward stops the run.

    If judging runs out of time or memory or the process dies, the same row is judged with an empty completion, and if
    that succeeds, the completion is judged again. If it fails again, the completion is at fault: its reward is 0 and it
    is counted as "exhausting". If the empty one fails, there is no verdict.

    Args:
        rewards: Maps names to rewards.
        workers: The number of processes.
    """

    def __init__(self, rewards: Mapping[str, Reward], workers: int) -> None:
        if workers < 1:
            raise UserError(f"rewards: needs at least one worker, got {workers}")
        self.rewards, self.workers = dict(rewards), workers
        self.outcomes: Counter[str] = Counter()
        self._sent = {name: _sendable(name, reward) for name, reward in self.rewards.items()}

    def score(self, requests: Sequence[RewardRequest]) -> list[dict[str, RewardResult]]:
        """The results of all rewards, by name, for each request. Collective if a reward is."""
        alone = [name for name, reward in self.rewards.items() if not isinstance(reward, BatchReward)]
        futures = {name: [self._schedule(name, request) for request in requests] for name in alone}
        found = {  # while the processes work
            name: self._batch(name, reward, requests)
            for name, reward in self.rewards.items()
            if isinstance(reward, BatchReward)
        }
        for name, row in futures.items():
            outcomes = [self._outcome(name, future) for future in row]
            found[name] = [self._result(name, *judged) for judged in self._judged_again(name, requests, outcomes)]
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
        context = _Spawning()
        places = {name: context.Semaphore(self.workers) for name in self.rewards}
        return optional("pebble", "rl").ProcessPool(
            self.workers, initializer=_begin, initargs=(places,), context=context
        )

    def _schedule(self, name: str, request: RewardRequest) -> Any:
        reward = self.rewards[name]
        try:
            return self._processes.schedule(
                _score, (name, self._sent[name], request), timeout=reward.time_limit_s + _WARM_UP_S
            )
        except RuntimeError as error:
            raise _not_started() from error

    def _outcome(self, name: str, future: Any) -> _Outcome:
        limit = f"took longer than {self.rewards[name].time_limit_s} s"
        try:
            return future.result()
        except OutOfTime:
            return _Outcome(None, "timed_out", limit, exhausted=True)
        except optional("pebble", "rl").ProcessExpired as expired:
            if expired.exitcode == -_ALARM:
                return _Outcome(None, "timed_out", limit, exhausted=True)
            code = 0 if expired.exitcode == _ENDED else expired.exitcode
            return _Outcome(None, "crashed", f"its process ended with exit code {code}", exhausted=True)
        except UserError:  # the run is set up wrongly, and would be for every sample
            raise
        except BrokenProcessPool as error:
            raise _not_started() from error
        except Exception as problem:
            return _Outcome(None, "raised", f"{type(problem).__name__}: {problem}")

    def _judged_again(
        self, name: str, requests: Sequence[RewardRequest], outcomes: Sequence[_Outcome]
    ) -> list[tuple[_Outcome, bool]]:
        """(outcome, whether the completion is to blame for it). A completion that exhausted a limit is to blame if the
        same row succeeds without it and it fails once more: a busy machine is slow for everybody, and pebble may
        attribute the sudden end of a process to the wrong completion."""
        rows = [id(request.row) for request in requests]  # a prompt's samples share it
        suspects = [at for at, outcome in enumerate(outcomes) if outcome.exhausted and requests[at].completion]
        controls = {rows[at]: requests[at] for at in suspects}
        running = {row: self._schedule(name, _without_completion(request)) for row, request in controls.items()}
        healthy = {row: not self._outcome(name, future).kind for row, future in running.items()}
        found = [(outcome, False) for outcome in outcomes]
        again = [at for at in suspects if healthy[rows[at]]]
        alone = [at for at in again if outcomes[at].kind == "crashed"]  # so that no other's end is taken for theirs
        for group in (*([at] for at in alone), [at for at in again if at not in alone]):
            futures = [self._schedule(name, requests[at]) for at in group]
            for at, future in zip(group, futures, strict=True):
                outcome = self._outcome(name, future)
                found[at] = (outcome, outcome.exhausted)
        return found

    def _batch(self, name: str, reward: BatchReward, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        if not requests and not reward.is_collective:
            return []
        try:
            found = list(reward.score_batch(requests))
        except UserError:
            raise
        except Exception as problem:
            if reward.is_collective:  # the other ranks wait for this one
                raise
            return [self._without(name, "raised", f"{type(problem).__name__}: {problem}") for _ in requests]
        if len(found) != len(requests):
            error = f"gave {len(found)} results for {len(requests)} completions"
            return [self._without(name, "wrong_length", error) for _ in requests]
        return [self._given(name, result) for result in found]

    def _given(self, name: str, result: Any) -> RewardResult:
        """The results of a batch, or a failure for each request if the reward returned something else."""
        if not isinstance(result, RewardResult):
            return self._without(name, "wrong_type", f"gave {_described(result)}, which is no RewardResult")
        outcome = _number(result.value)
        return self._result(name, outcome._replace(why=result.error or outcome.why))

    def _result(self, name: str, outcome: _Outcome, completion_at_fault: bool = False) -> RewardResult:
        if completion_at_fault:
            self._count(name, "exhausting", f"{outcome.why}, an empty one did not; paid {_EXHAUSTING}")
            return RewardResult(_EXHAUSTING, f"exhausting: {outcome.why}")
        if outcome.kind:
            return self._without(name, outcome.kind, outcome.why)
        return RewardResult(outcome.value, outcome.why or None)

    def _without(self, name: str, kind: str, error: str) -> RewardResult:
        self._count(name, kind, error)
        return RewardResult(None, error)

    def _count(self, name: str, kind: str, error: str) -> None:
        self.outcomes[f"{name}/{kind}"] += 1
        if self.outcomes[f"{name}/{kind}"] == 1:
            warnings.warn(f"rewards/{name}/{kind}, counted from now on; the first: {error}", stacklevel=2)


def _number(value: Any) -> _Outcome:
    """A reward as a number. Text that could be read as a number is refused."""
    if value is None:
        return _Outcome(None, "none", "gave no reward")
    try:
        number = float(value) if isinstance(value, SupportsFloat) else None
    except Exception:  # an array of several
        number = None
    if number is None:
        return _Outcome(None, "wrong_type", f"gave {_described(value)}, which is no number")
    if not math.isfinite(number):
        return _Outcome(None, "not_finite", f"gave {number}")
    return _Outcome(number)


def _described(value: Any) -> str:
    return f"{value!r:.80} of type {type(value).__name__}"


# In the processes

#: Exit codes: of one whose time was up, and of one that ended as if all were well, amid a completion.
_ALARM, _ENDED = getattr(signal, "SIGALRM", 14), 256

#: Reward -> places to warm up in. One that a process died in is never given back, so that the others stop trying.
_places: dict[str, Any] = {}


def _begin(places: dict[str, Any]) -> None:
    _places.update(places)


class _Process(SpawnProcess):
    """A worker process. One that ends by itself has abandoned its work, even with exit code 0."""

    @property
    def exitcode(self) -> int | None:  # type: ignore[override]
        return super().exitcode or (_ENDED if super().exitcode == 0 else None)


class _Spawning(SpawnContext):
    Process = _Process


def _score(name: str, sent: Reward | bytes, request: RewardRequest) -> _Outcome:
    """Scores one completion in a worker. Exceptions are returned as text, because some cannot be sent, and `sys.exit`
    would end the worker. The time limit starts when the reward is warm, and the system ends the process when it is
    exceeded."""
    reward = _received(sent)
    place = _places.pop(name, None)
    if place is not None and place.acquire(block=False):
        _alarm(min(_WARM_UP_TIMES * reward.time_limit_s, _WARM_UP_S))
        with contextlib.suppress(BaseException):
            reward.warm_up(_without_completion(request))
        place.release()
    try:
        _alarm(reward.time_limit_s)
        return _number(reward.score(request))
    except UserError:
        raise
    except NoVerdictError as none:
        return _Outcome(None, str(none.kind or "no_verdict"), str(none.why))
    except BaseException as problem:
        exhausted = isinstance(problem, (MemoryError, RecursionError))
        return _Outcome(None, "raised", f"{own.place(problem)}{type(problem).__name__}: {problem}", exhausted)
    finally:
        _alarm(0)


def _received(sent: Reward | bytes) -> Reward:
    if isinstance(sent, Reward):
        return sent
    import dill

    return dill.loads(sent)  # noqa: S301  bytes that this run has made


def _alarm(seconds: float) -> None:
    """Sets the system's alarm, which interrupts even a long computation in C; 0 cancels it."""
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _without_completion(request: RewardRequest) -> RewardRequest:
    return replace(request, completion="", truncated=False)
