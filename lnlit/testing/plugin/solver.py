"""A solver: the best choice per layer within the budgets of a problem."""

from __future__ import annotations

import itertools
import time

from lnlit.interfaces import Problem, Solution, Solver, SolverResult


class Example(Solver):
    """Tries one combination after another until the time limit."""

    def solve_one(self, problem: Problem, time_limit_s: float) -> SolverResult:
        end = time.monotonic() + time_limit_s
        layers = [[choice.name for choice in problem.allowed(layer)] for layer in range(len(problem.layers))]
        found = []
        for names in itertools.product(*layers):
            if not problem.violations(names):
                found.append(Solution(names, *problem.totals(names)))
            if time.monotonic() > end:
                break
        found.sort(key=lambda solution: solution.score, reverse=problem.objective == "maximize")
        best = self.wanted(problem, found)
        return SolverResult("feasible" if best else "not_found", best)
