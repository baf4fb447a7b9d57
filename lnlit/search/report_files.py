"""From the files of a search to a `Search`: a problem, its solutions, and costs that were measured on real children."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces.problem import Problem
from lnlit.interfaces.solver import SolverResult
from lnlit.search.charts import Measured
from lnlit.search.library import Library
from lnlit.search.report import Child, Search, parent_child


def read_search(data: Mapping[str, Any], problem: Problem, library: Library | None, where: str) -> Search:
    """`data`: what `lnlit search solve` wrote, a `SolverResult` with "baselines" and "frontier" beside it.

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
    solutions = tuple(
        Child.of("child" if index == 0 else f"child {index + 1}", solution)
        for index, solution in enumerate(result.solutions)
    )
    return Search(problem, result.status, solutions, parent=parent_child(problem, library))


def read_measured(data: Mapping[str, Any], where: str) -> list[Measured]:
    """`{"models": [{"name": ..., "predicted": {cost: value}, "measured": {cost: value}}]}`; `UserError` otherwise."""
    try:
        return [
            Measured(str(model["name"]), cost, float(model["predicted"][cost]), float(value))
            for model in data["models"]
            for cost, value in model["measured"].items()
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}: expected models with name, predicted and measured costs; {type(error).__name__} {error}."
        ) from error
