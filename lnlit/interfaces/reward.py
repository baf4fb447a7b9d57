"""Interface `reward`: judges how good a completion is."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from lnlit.errors import UserError


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


@runtime_checkable
class GradesAnswer(Protocol):
    """A reward that judges a completion by its final answer alone, so that completions can vote on it."""

    def final_answer(self, completion: str) -> str | None:
        """The answer, in a form in which equal answers are equal texts. None if the completion gives none."""
        ...


class BatchReward(Reward):
    """A reward that is a model or a service. It judges many completions at once, in the trainer's process and without a
    time limit.

    It may keep state between calls, and must return by itself, because nothing stops it.
    """

    @property
    def is_collective(self) -> bool:
        """True if the ranks of a run judge together. Then all of them call `score_batch` equally often, a rank that has
        nothing to judge with no requests, and one that raises ends the run."""
        return False

    @abstractmethod
    def score_batch(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """One result per request, in the same order."""

    def score(self, request: RewardRequest) -> float | None:
        return self.score_batch([request])[0].value

    def close(self) -> None:
        """Releases memory and connections. May be called twice."""


class FunctionReward(Reward):
    """A plain function as a reward: `def polite(request: RewardRequest) -> float | None`."""

    def __init__(self, function: Callable[..., float | None], /, **arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def score(self, request: RewardRequest) -> float | None:
        return self.function(request, **self.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.function, self.arguments)


def _again(function: Callable[..., float | None], arguments: dict[str, Any]) -> FunctionReward:
    return FunctionReward(function, **arguments)


def reward_class(module: str, name: str) -> type[FunctionReward]:
    """The reward class that calls what an imported module calls `name`, and finds it there again in another process.

    The function's parameters after the request become arguments of the class. Raises `UserError` for a function that
    cannot be called with a request or returns no number.
    """
    function = getattr(sys.modules[module], name)

    def __init__(self: FunctionReward, /, **arguments: Any) -> None:
        FunctionReward.__init__(self, function, **arguments)

    def __reduce__(self: FunctionReward) -> tuple[Any, ...]:
        return _found_again, (module, name, self.arguments)

    itself = inspect.Parameter("itself", inspect.Parameter.POSITIONAL_ONLY)
    __init__.__signature__ = inspect.Signature([itself, *_arguments(function, name)])  # type: ignore[attr-defined]
    members = {"__init__": __init__, "__reduce__": __reduce__, "__doc__": inspect.getdoc(function)}
    return type(name, (FunctionReward,), members)


def _found_again(module: str, name: str, arguments: dict[str, Any]) -> FunctionReward:
    return FunctionReward(getattr(importlib.import_module(module), name), **arguments)


def _arguments(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    """What a function takes beside the request, with types that can be checked."""
    example = f"Expected a function such as `def {name}(request, weight: float = 1.0) -> float`."
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UserError(f"{name} is a coroutine or a generator, whose result is no number. {example}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError as error:
        raise UserError(f"{name} does not say what it takes. {example}") from error
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in (*by_place, inspect.Parameter.VAR_POSITIONAL):
        raise UserError(f"{name} takes no request. {example}")
    written = {each.name: each.annotation for each in parameters[1:] if each.annotation is not each.empty}
    where = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        hints = typing.get_type_hints(types.SimpleNamespace(__annotations__=written), where, include_extras=True)
    except NameError as error:
        raise UserError(
            f"{name}: the type of an argument is not known when it runs: {error}. Import it outside `if TYPE_CHECKING`."
        ) from error
    return [each.replace(annotation=hints.get(each.name, each.empty)) for each in parameters[1:]]
