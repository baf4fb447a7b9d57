"""Interface `reward`: judges how good a completion is."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RewardRequest:
    """A completion to judge.

    `row` is the prompt's row of data, with its answer. `completion` is the assistant's text without control tokens but
    with thinking tags, including an opening tag that the prompt ends with. `truncated` is true if the completion hit
    the length limit.
    """

    messages: Sequence[Mapping[str, str]]
    completion: str
    truncated: bool
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardResult:
    """A reward, or None with the reason in `error` if there is no verdict. A sample without a verdict is left out of
    training, which differs from a reward of 0."""

    value: float | None
    error: str | None = None


class NoVerdictError(Exception):
    """Raised by a reward when a completion cannot be judged through no fault of its own.

    Args:
        kind: The name under which the case is counted, one word such as `unreadable_gold`.
        why: The reason for this row, shown to the user.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(kind, why)
        self.kind, self.why = kind, why

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}"


class Reward(ABC):
    """Code that judges one completion at a time in another process, which may be stopped at any time. It must be
    picklable.

    If judging a completion twice runs out of time or memory or kills the process, `lnlit.rewards.pool` judges an empty
    completion in its place. If that succeeds, the completion is at fault and its reward is 0; otherwise there is no
    verdict.
    """

    #: Seconds that one completion may take.
    time_limit_s: float = 10.0

    @abstractmethod
    def score(self, request: RewardRequest) -> float | None:
        """The reward of one completion. Returns None or raises `NoVerdictError` if there is no verdict. Any other
        exception is counted and also means no verdict."""

    def check_row(self, row: Mapping[str, Any]) -> None:  # noqa: B027 - most rewards take any row
        """Raises `UserError` if no completion could be judged by this row. It is called with every row before sampling
        starts, in the trainer's process, so it must be fast and must not import anything heavy."""

    def counts(self) -> Mapping[str, int]:
        """How often each reason for a missing verdict occurred since the reward was made; logged after each rollout.
        Only used for a `BatchReward`, because other rewards run in processes that report results only."""
        return {}

    def warm_up(self, request: RewardRequest) -> None:
        """Imports and loads whatever the first completion would otherwise wait for. It is called once in each worker
        process, outside the time limit, with an empty completion. Exceptions are ignored."""
        self.score(request)


class BatchReward(Reward):
    """A reward that is a model or a service. It judges many completions at once, in the trainer's process and without a
    time limit.

    It may keep state between calls, and must return by itself, because nothing stops it.
    """

    @abstractmethod
    def score_batch(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """One result per request, in the same order."""

    def score(self, request: RewardRequest) -> float | None:
        return self.score_batch([request])[0].value

    def close(self) -> None:
        """Releases memory and connections. May be called twice."""


class FunctionReward(Reward):
    """A plain function as a reward: `def polite(request: RewardRequest) -> float | None`."""

    def __init__(self, function: Callable[..., float | None], **arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def score(self, request: RewardRequest) -> float | None:
        return self.function(request, **self.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.function, self.arguments)


def _again(function: Callable[..., float | None], arguments: dict[str, Any]) -> FunctionReward:
    return FunctionReward(function, **arguments)


def reward_class(function: Callable[..., float | None]) -> type[FunctionReward]:
    """The reward class that calls `function`. The function's further parameters become arguments of the class."""

    def __init__(self: FunctionReward, **arguments: Any) -> None:
        FunctionReward.__init__(self, function, **arguments)

    _, *others = inspect.signature(function, eval_str=True).parameters.values()
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    __init__.__signature__ = inspect.Signature([itself, *others])  # type: ignore[attr-defined]
    members = {"__init__": __init__, "__doc__": inspect.getdoc(function)}
    return type(function.__name__, (FunctionReward,), members)
