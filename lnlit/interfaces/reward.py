"""Socket `reward`: says how good completions are."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RewardRequest:
    """A completion to judge. `row` is the prompt's row of data, its answer included; `completion` what the assistant
    says, without control tokens but with its thinking tags, the opening one included where the prompt ends with it;
    `truncated` says that it ended for want of room."""

    messages: Sequence[Mapping[str, str]]
    completion: str
    truncated: bool
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardResult:
    """`value` None means that no judgement was possible, for the reason in `error`: the sample then counts for nothing,
    which is not the same as a reward of 0."""

    value: float | None
    error: str | None = None


class NoVerdictError(Exception):
    """Raised by a reward where nobody can say what a completion is worth, and the completion is not to blame.

    Args:
        kind: what it is counted as, one word such as `unreadable_gold`.
        why: for the user, of this row.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(kind, why)
        self.kind, self.why = kind, why

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}"


class Reward(ABC):
    """A reward is plain data and code that can be sent to another process, where it may be stopped at any time.

    Whose fault it is when nothing comes back is decided in one place, `lnlit.rewards.pool`: a completion that twice
    takes all the time or memory, or kills the process, is paid 0 where an empty completion in its place is judged
    without ado; else there is no verdict.
    """

    #: Seconds that one completion may take.
    time_limit_s: float = 10.0

    @abstractmethod
    def score(self, request: RewardRequest) -> float | None:
        """The reward of one completion; None or a `NoVerdictError` where there is none to give. Any other exception is
        noted and counts as none."""

    def check_row(self, row: Mapping[str, Any]) -> None:  # noqa: B027 - most rewards take any row
        """Raises `UserError` where no completion could be judged by this row. Sees every row before anything is
        sampled, in the trainer's process, so it imports nothing heavy and looks no further than it can in an instant.
        """

    def counts(self) -> Mapping[str, int]:
        """Why it gave no verdict, in its own words, since it was made: logged after each rollout. Of a `BatchReward`;
        another runs in processes whose counts nobody hears of."""
        return {}

    def warm_up(self, request: RewardRequest) -> None:
        """Import and read what only the first completion waits for. Called once in each process that judges, outside
        the time limit, with an empty completion; whatever it raises is nobody's verdict."""
        self.score(request)


class BatchReward(Reward):
    """A model or a service: judges many completions at once, in the trainer's own process and on its own time.

    It keeps what it needs between calls, and must end by itself: nobody stops it.
    """

    @abstractmethod
    def score_batch(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """One result per request, in their order."""

    def score(self, request: RewardRequest) -> float | None:
        return self.score_batch([request])[0].value

    def close(self) -> None:
        """Give memory and connections back. May be called twice."""


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
    """The class of rewards that call `function`. What it takes beside the request are the arguments of the class."""

    def __init__(self: FunctionReward, **arguments: Any) -> None:
        FunctionReward.__init__(self, function, **arguments)

    _, *others = inspect.signature(function, eval_str=True).parameters.values()
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    __init__.__signature__ = inspect.Signature([itself, *others])  # type: ignore[attr-defined]
    members = {"__init__": __init__, "__doc__": inspect.getdoc(function)}
    return type(function.__name__, (FunctionReward,), members)
