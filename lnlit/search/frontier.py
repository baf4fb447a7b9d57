"""The quality/cost frontier: one problem solved again and again under a moving budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from lnlit.interfaces import Budget, Problem, Solver
from lnlit.schema import read

Side = Literal["min", "max"]


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


def _means(cost: str, labelled: str) -> bool:
    return labelled == cost or labelled.startswith(f"{cost} @ ")
