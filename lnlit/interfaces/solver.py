"""Interface `solver`: finds the best choice per layer within the budgets of a `Problem`."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lnlit.interfaces.problem import Problem
from lnlit.schema import read

#: optimal: proven within the gap that each solution states. feasible: found by a heuristic. infeasible: proven.
#: time_limit: stopped early, with the solutions found so far. not_found: a heuristic found nothing.
Status = Literal["optimal", "feasible", "infeasible", "time_limit", "not_found"]


@dataclass(frozen=True)
class Solution:
    """One choice per layer, by name. `bound` is a score that no solution can beat, and `gap` the distance to it
    relative to the score; both are None if the solver proves nothing. `seconds` is the time spent on this solution."""

    choice: tuple[str, ...]
    score: float
    costs: Mapping[str, float]
    bound: float | None = None
    gap: float | None = None
    seconds: float = 0.0
    scenario: str | None = None


@dataclass(frozen=True)
class SolverResult:
    """The solutions of a solver, best score first.

    If the problem is infeasible, `tightest` maps the cost of each budget to the reachable total nearest to the budget
    while all other limits hold ("scenario: cost" if there are scenarios).
    """

    status: Status
    solutions: tuple[Solution, ...] = ()
    tightest: Mapping[str, float] = field(default_factory=dict)
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: str = "solution") -> SolverResult:
        """Reads a result. Other keys in the same file are ignored."""
        return read(cls, data, path, others=True)


class Solver(ABC):
    """Base class of solvers. Every argument of the constructor has a default."""

    @abstractmethod
    def solve_one(self, problem: Problem, time_limit_s: float) -> SolverResult:
        """Solves a problem without scenarios. An exact solver must keep the time limit; a heuristic may exceed it."""

    def solve(self, problem: Problem, time_limit_s: float = 300.0) -> SolverResult:
        """Solves every scenario within one time limit in total, and checks each solution against the problem again."""
        end = time.monotonic() + time_limit_s
        if not problem.scenarios:
            return _verified(problem, self.solve_one(problem, time_limit_s), None)
        results = {}
        for position, scenario in enumerate(problem.scenarios):
            left_s = max(end - time.monotonic(), 0.0) / (len(problem.scenarios) - position)
            alone = problem.in_scenario(scenario)
            results[scenario.name] = _verified(alone, self.solve_one(alone, left_s), scenario.name)
        solutions = _best_first(problem, [s for result in results.values() for s in result.solutions])
        return _merged(results, self.wanted(problem, solutions))

    def wanted(self, problem: Problem, solutions: Sequence[Solution]) -> tuple[Solution, ...]:
        """The solutions to return, from those of all scenarios, best first: up to `num_solutions`, as different as
        `max_overlap` asks."""
        kept: list[Solution] = []
        for solution in solutions:
            shared = (sum(a == b for a, b in zip(solution.choice, one.choice, strict=True)) for one in kept)
            if len(kept) < problem.num_solutions and all(count <= problem.most_shared for count in shared):
                kept.append(solution)
        return tuple(kept)


def _verified(problem: Problem, result: SolverResult, scenario: str | None) -> SolverResult:
    solutions = []
    for solution in result.solutions:
        if broken := problem.violations(solution.choice):
            raise RuntimeError(f"a solver returned a solution that breaks a limit: {'; '.join(broken)}")
        score, costs = problem.totals(solution.choice)
        solutions.append(dataclasses.replace(solution, score=score, costs=costs, scenario=scenario))
    return dataclasses.replace(result, solutions=_best_first(problem, solutions))


def _merged(results: Mapping[str, SolverResult], solutions: tuple[Solution, ...]) -> SolverResult:
    statuses = [result.status for result in results.values()]
    order: tuple[Status, ...] = ("time_limit", "optimal", "feasible", "not_found", "infeasible")
    return SolverResult(
        status=next(status for status in order if status in statuses),
        solutions=solutions,
        tightest={f"{name}: {cost}": v for name, result in results.items() for cost, v in result.tightest.items()},
        message="; ".join(f"{name}: {result.message}" for name, result in results.items() if result.message),
    )


def _best_first(problem: Problem, solutions: Iterable[Solution]) -> tuple[Solution, ...]:
    sign = -1 if problem.objective == "maximize" else 1
    return tuple(sorted(solutions, key=lambda solution: sign * solution.score))
