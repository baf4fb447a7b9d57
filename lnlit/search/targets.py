"""What a person asks of a search, as plain data, and the quality/cost frontier: one problem under a moving budget."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lnlit.errors import UserError
from lnlit.interfaces import Budget, Count, Forbidden, Problem, Solver, Workload
from lnlit.schema import read
from lnlit.specs import NOOP

Side = Literal["min", "max"]
#: A bound of this many times the parent's cost must have been meant in percent.
_PERCENT = 10.0


@dataclass(frozen=True)
class Target:
    """What the child must keep: bounds of one of its costs.

    `cost` is one that the cost table has (memory_mib, weight_mib, kv_mib, parameters, latency_s, prefill_s, decode_s,
    kv_bytes_per_token), or a throughput in tokens/s (only a `min`): `throughput` counts prompt and new tokens as in
    Puzzle, `output_throughput` new tokens alone. Or `cached_tokens` (only a `min`): the tokens whose keys and values
    fit beside the weights into `room_mib`, which belongs to this cost alone.
    `of_parent`: the bounds are shares of what the parent costs, as `throughput` with a `min` of 1.3.
    """

    cost: str
    min: float | None = None
    max: float | None = None
    of_parent: bool = False
    room_mib: float | None = None

    def __post_init__(self) -> None:
        if self.of_parent and self.max is not None:
            check_shares("deployment.targets", self.cost, [self.max])


@dataclass(frozen=True)
class _Record:
    """A record that converts its lists, which YAML has, to tuples, so that two records with equal items are equal."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))


@dataclass(frozen=True)
class Deployment(_Record):
    """The machine that the child must run on, and the limits that must hold there.

    Args:
        costs: The cost table that `lnlit search measure` wrote on that machine.
        targets: Bounds of the child's costs.
        workloads: The workloads of the table to use; all by default. Several are alternatives: the targets must hold in
            one, and the one that allows the best child wins.
        corrected_by: The measurements of `lnlit search verify`, with the parent first and an earlier search's child
            last. Targets on times are tightened by as much as that child missed its prediction.
        allow_other_hardware: Accept costs that were measured on another machine.
    """

    costs: str | None = None
    targets: Sequence[Target] = ()
    workloads: Sequence[Workload] = ()
    corrected_by: str | None = None
    allow_other_hardware: bool = False


@dataclass(frozen=True)
class Rules(_Record):
    """The choices that a solver may take. The parent's own variants always match `attention` and `ffn`.

    Args:
        attention: Patterns over the names of attention variants.
        ffn: Patterns over the names of FFN variants.
        counts: How many layers may take the choices that match a pattern.
        forbidden: Choices that one layer must not take.
        first_attention: Keep attention in layer 0. vLLM's own model class cannot run a model without; lnlit-vllm can.
    """

    attention: Sequence[str] = ("*",)
    ffn: Sequence[str] = ("*",)
    counts: Sequence[Count] = ()
    forbidden: Sequence[Forbidden] = ()
    first_attention: bool = True


NOOP_ONLY = Rules((NOOP.type,), (NOOP.type,))


@dataclass(frozen=True)
class Solutions:
    """How many children to find, and how different.

    Args:
        number: The number of children to find.
        max_overlap: The largest share of the layers, from 0 to 1, in which two of them may be equal.
    """

    number: int = 1
    max_overlap: float = 0.8


@dataclass(frozen=True)
class Sweep:
    """A frontier: values for one side of a cost's budget, each of which is solved. `of_parent` as in `Target`."""

    cost: str
    values: tuple[float, ...]
    side: Side = "max"
    of_parent: bool = False

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError("frontier.values: there are none. Give the values to solve, or leave frontier out.")
        if self.of_parent and self.side == "max":
            check_shares("frontier", self.cost, self.values)


def check_shares(where: str, cost: str, shares: Iterable[float]) -> None:
    """Checks upper bounds relative to the parent's costs, and prints a note for one that the parent itself keeps.

    Raises `UserError` for one that was obviously meant in percent.
    """
    for share in shares:
        told = f"{where}: {cost} max {share:g} of_parent is {share:g} times what the parent costs"
        if share >= _PERCENT:
            raise UserError(
                f"{told}. Shares are parts of 1: write {share / 100:g} for {share:g} %, or leave of_parent out for "
                f"{share:g} in the cost's own unit."
            )
        if share > 1:
            print(f"{told}, so the parent itself keeps it", file=sys.stderr)


def with_budget(problem: Problem, cost: str, side: Side, value: float) -> Problem:
    """The problem with `side` of `cost`'s budget moved to `value`, wherever that budget stands; added where it is new.

    In scenarios, `cost` may leave out the label: "latency_s" then moves "latency_s @ 64x512+128" of each. Raises
    `UserError` for a cost that the problem does not have and a value that is no bound.
    """
    read(float, value, "frontier")

    def moves(budget: Budget) -> bool:
        return _means(cost, budget.cost) and getattr(budget, side) is not None

    def moved(budgets: Sequence[Budget]) -> tuple[Budget, ...]:
        return tuple(dataclasses.replace(b, **{side: value}) if moves(b) else b for b in budgets)

    if not any(map(moves, [*problem.budgets, *(b for scenario in problem.scenarios for b in scenario.budgets)])):
        bound = Budget(cost, min=value) if side == "min" else Budget(cost, max=value)
        return problem.replace(budgets=(*problem.budgets, bound))
    scenarios = tuple(dataclasses.replace(s, budgets=moved(s.budgets)) for s in problem.scenarios)
    return problem.replace(budgets=moved(problem.budgets), scenarios=scenarios)


def frontier(
    problem: Problem,
    cost: str,
    values: Iterable[float],
    solver: Solver,
    *,
    side: Side = "max",
    time_limit_s: float = 300.0,
) -> Iterator[dict[str, Any]]:
    """One row per value: cost, side, value, status, and of the best solution score, bound, gap, costs, choice.

    What the best solution has is None where there is no solution. `time_limit_s` is for each value. One solution each.
    """
    for value in values:
        asked = with_budget(problem.replace(num_solutions=1), cost, side, value)
        result = solver.solve(asked, time_limit_s)
        best = result.solutions[0] if result.solutions else None
        found = {key: getattr(best, key, None) for key in ("score", "bound", "gap", "costs", "choice", "scenario")}
        yield {"cost": cost, "side": side, "value": float(value), "status": result.status, **found}


def cost_at(cost: str, label: str) -> str:
    """The name of a cost in one of several scenarios, as "memory_mib @ 64x512+128"; without a label, the cost
    itself."""
    return f"{cost} @ {label}" if label else cost


def _means(cost: str, labelled: str) -> bool:
    return labelled == cost or labelled.startswith(f"{cost} @ ")
