"""The contract of solvers, as a function for a test to call: `check_solver("highs")`."""

from __future__ import annotations

import itertools
import json
from typing import get_args

from lnlit import registry
from lnlit.interfaces import Budget, Choice, Count, Forbidden, Problem, Scenario, Solver, SolverResult
from lnlit.interfaces.solver import Status
from lnlit.testing.promises import expect


def check_solver(name: str) -> None:
    """Checks that a solver's solutions keep every limit, its claims of proof are true, and its result is plain data.

    Raises AssertionError naming the solver and the broken promise.
    """
    solver = registry.build("solver", name)
    assert isinstance(solver, Solver)
    for title, problem in _problems().items():
        label = f"solver {name!r} on {title}"
        before = problem.to_json()
        result = solver.solve(problem, time_limit_s=60.0)  # raises when a solution breaks a limit
        expect(problem.to_json() == before, label, "the problem is changed")
        expect(result.status in get_args(Status), label, f"status {result.status!r} is none of {get_args(Status)}")
        read = SolverResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
        expect(read == result, label, "the result is not the same after JSON")
        again = registry.build("solver", name).solve(problem, time_limit_s=60.0)
        same = [s.choice for s in again.solutions] == [s.choice for s in result.solutions]
        expect(same, label, "a second run finds other solutions")
        _check_claims(problem, result, label)


def _check_claims(problem: Problem, result: SolverResult, label: str) -> None:
    parts = {s.name: problem.in_scenario(s) for s in problem.scenarios} or {None: problem}
    scores = {name: _scores(part) for name, part in parts.items()}
    possible = [score for found in scores.values() for score in found]
    expect(not (result.solutions and not possible), label, "there is a solution where none can be")
    expect(result.status != "infeasible" or not possible, label, "a problem with solutions is called infeasible")
    expect(result.status not in ("optimal", "feasible") or bool(result.solutions), label, "no solutions to its status")
    sign = -1.0 if problem.objective == "maximize" else 1.0
    for solution in result.solutions:
        expect(solution.scenario in parts, label, f"the scenario {solution.scenario!r} does not exist")
        proven = solution.bound is not None and solution.gap is not None
        expect(result.status != "optimal" or proven, label, "an optimal solution has a bound and a gap")
    if result.status == "optimal":
        best = sign * min(sign * score for score in possible)
        close = abs(result.solutions[0].score - best) <= 1e-6 * max(1.0, abs(best))
        expect(close, label, f"the optimum is {best}, the best solution has {result.solutions[0].score}")


def _scores(problem: Problem) -> list[float]:
    """The scores of all combinations that keep all limits."""
    layers = [[choice.name for choice in problem.allowed(layer)] for layer in range(len(problem.layers))]
    kept = (names for names in itertools.product(*layers) if not problem.violations(names))
    return [problem.totals(names)[0] for names in kept]


def _problems() -> dict[str, Problem]:
    names = ("full", "half", "noop")
    layers = tuple(
        tuple(
            Choice(name, float(loss * (1 + layer % 3)), {"size": 4.0 - 2.0 * loss + 0.1 * layer, "time": 3.0 - loss})
            for loss, name in enumerate(names)
        )
        for layer in range(4)
    )
    plain = Problem(layers)
    limited = plain.replace(budgets=(Budget("size", max=11.0), Budget("time", min=6.0)), base_costs={"size": 1.0})
    tight = Scenario("tight", (Budget("size", max=3.0),))
    return {
        "a problem without limits": plain,
        "budgets": limited,
        "a problem to maximise": limited.replace(objective="maximize"),
        "counts and a forbidden choice": limited.replace(
            counts=(Count("noop", max=1), Count("*", min=4)), forbidden=(Forbidden(0, "half"),)
        ),
        "several solutions": limited.replace(num_solutions=3, max_overlap=0.5),
        "scenarios": limited.replace(scenarios=(tight, Scenario("impossible", (Budget("size", max=0.5),)))),
        "an impossible budget": plain.replace(budgets=(Budget("time", max=1.0),)),
    }
