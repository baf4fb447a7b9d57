"""From the files of a search to a `Search`: a problem, its solutions, and costs that were measured on real children."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces.problem import Problem
from lnlit.interfaces.solver import SolverResult
from lnlit.search.charts import Frontier, Measured, Point
from lnlit.search.library import Library
from lnlit.search.report import Child, Search, parent_child

#: Baselines as a reader knows them.
_TITLES = {"greedy": "Puzzle's greedy", "ratio_greedy": "greedy by ratio"}


def read_search(data: Mapping[str, Any], problem: Problem, library: Library | None, where: str) -> Search:
    """`data`: what `lnlit search solve` wrote, a `SolverResult` with "solver", "baselines" and "frontier" beside it.

    Raises `UserError` for other data, for choices that the problem does not have, and with the solver's own reason
    where there is no solution.
    """
    result = SolverResult.from_json(data, where)
    if not result.solutions:
        raise UserError(f"{where}: holds no solution ({result.status}). {result.message}".rstrip())
    if library is not None and len(library.layers) != len(problem.layers):
        raise UserError(
            f"{where}: is for {len(problem.layers)} layers, the library {library.folder} has {len(library.layers)}."
        )
    for solution in result.solutions:
        problem.picked(solution.choice)
    titles = ["child", *(f"child {number}" for number in range(2, len(result.solutions) + 1))]
    parent = parent_child(problem, library)
    name = "optimum" if result.solutions[0].bound is not None else _title(str(data.get("solver", "found")))
    try:
        others = {key: each for key, each in data.get("baselines", {}).items() if key != data.get("solver")}
        baselines = [child for key, each in others.items() for child in _baseline(key, each, where)]
        sweep = _sweep(data.get("frontier") or [], str(data.get("solver")), name, parent, problem)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: baselines or frontier cannot be read: {type(error).__name__} {error}.") from error
    children = tuple(map(Child.of, titles, result.solutions))
    return Search(problem, result.status, children, tuple(baselines), sweep, parent, name)


def _baseline(name: str, data: Mapping[str, Any], where: str) -> list[Child]:
    """Its best child; of a method that draws many, also what they are on average."""
    found = SolverResult.from_json(data, f"{where}: baselines.{name}").solutions
    if len(found) < 2:
        return [Child.of(_title(name), solution) for solution in found]
    means = {cost: fmean(solution.costs[cost] for solution in found) for cost in found[0].costs}
    mean = Child(f"{_title(name)}, mean of {len(found)}", (), fmean(solution.score for solution in found), means)
    return [Child.of(f"{_title(name)}, best of {len(found)}", found[0]), mean]


def _sweep(
    rows: Sequence[Mapping[str, Any]], solver: str, name: str, parent: Child | None, problem: Problem
) -> Frontier | None:
    """One series per solver, from rows of `lnlit.search.frontier`. Limits that nothing could keep have no point."""
    series: dict[str, list[Point]] = {}
    for row in rows:
        if row["score"] is not None:
            series.setdefault(row["solver"], []).append(Point(_cost(row), row["score"], row["bound"]))
    best = series.pop(solver, [])
    if not best:
        return None
    cost, side = rows[0]["cost"], rows[0]["side"]
    parent_cost = parent.costs.get(cost) if parent else None
    others = {_title(key): points for key, points in series.items()}
    return Frontier(cost, best, others, True, name, side, parent_cost, problem.objective == "minimize")


def _cost(row: Mapping[str, Any]) -> float:
    """What the child of a row costs; the limit itself where several workloads have costs of their own."""
    return row["costs"].get(row["cost"], row["value"])


def _title(solver: str) -> str:
    return _TITLES.get(solver, solver.replace("_", " "))


def read_measured(data: Mapping[str, Any], where: str) -> list[Measured]:
    """`{"models": [{"name": ..., "predicted": {cost: value}, "measured": {cost: value}}]}`; `UserError` otherwise, and
    for a measured value that no prediction can be compared with.
    """
    try:
        points = [
            Measured(str(model["name"]), cost, float(model["predicted"][cost]), float(value))
            for model in data["models"]
            for cost, value in model["measured"].items()
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}: expected models with name, predicted and measured costs; {type(error).__name__} {error}."
        ) from error
    for point in points:
        if not (point.measured > 0 and isfinite(point.measured)):
            raise UserError(
                f"{where}: {point.cost} of {point.name} was measured as {point.measured}; errors are relative to what "
                "was measured, so it must be above 0. Leave that cost out."
            )
    return points
