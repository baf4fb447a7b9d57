"""The results of a search as data: reads the files that the stages of `lnlit search` write into a `Search`.

It accepts any problem and solution in the documented JSON forms (`lnlit.interfaces.solver`). With a block library, it
also knows the parent and the parts behind the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import isfinite, nan
from statistics import fmean
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces.problem import Choice, Problem
from lnlit.interfaces.solver import Solution, SolverResult
from lnlit.report.charts import Frontier, Limit, Measured, Point, cost_label
from lnlit.report.maps import Strip
from lnlit.search.choice import SLOTS
from lnlit.search.library import Library

#: Titles of the baselines for readers.
_TITLES = {"greedy": "Puzzle's greedy", "ratio_greedy": "greedy by ratio"}


@dataclass(frozen=True)
class Child(Solution):
    """A solution with a title."""

    title: str = ""

    @classmethod
    def of(cls, title: str, solution: Solution) -> Child:
        return cls(**vars(solution), title=title)


@dataclass(frozen=True)
class Search:
    """A problem, its solutions by `solver` (best first), those of the baselines within the same budgets, and a sweep
    over one budget."""

    problem: Problem
    status: str
    solutions: tuple[Child, ...]
    baselines: tuple[Child, ...] = ()
    sweep: Frontier | None = None
    parent: Child | None = None
    solver: str = "optimum"

    @cached_property
    def layers(self) -> tuple[Mapping[str, Choice], ...]:
        """The candidates of each layer, by name."""
        return tuple({choice.name: choice for choice in layer} for layer in self.problem.layers)

    @property
    def lower_is_better(self) -> bool:
        return self.problem.objective == "minimize"

    def child(self, index: int) -> Child:
        if not 0 <= index < len(self.solutions):
            raise UserError(f"report: there are {len(self.solutions)} solutions, numbered from 0; got index {index}.")
        return self.solutions[index]

    @property
    def limited_costs(self) -> list[str]:
        """The costs that have a budget in the problem or in a scenario."""
        scenarios = chain.from_iterable(scenario.budgets for scenario in self.problem.scenarios)
        return list(dict.fromkeys(budget.cost for budget in chain(self.problem.budgets, scenarios)))

    def ledger(self, child: Child) -> list[Limit]:
        """Every limit that applies to the child, with the amounts that the child and the parent use."""
        scenario = [each for each in self.problem.scenarios if each.name == child.scenario]
        rows = []
        for limit in chain(self.problem.budgets, *(each.budgets for each in scenario)):
            before = self.parent.costs.get(limit.cost) if self.parent else None
            for value, least in ((limit.max, False), (limit.min, True)):
                if value is not None:
                    rows.append(Limit(limit.cost, value, child.costs[limit.cost], before, least))
        return rows

    def frontier(self) -> Frontier | None:
        """The sweep if there is one, else the solutions by the cost of the first budget. None without a budget."""
        cost = next(iter(self.limited_costs), "")
        if self.sweep or not cost:
            return self.sweep
        ways = {"further solutions": self.solutions[1:], **{each.title: (each,) for each in self.baselines}}
        points = {way: [Point(c.costs[cost], c.score) for c in children] for way, children in ways.items() if children}
        first = self.solutions[0]
        best = [Point(first.costs[cost], first.score, first.bound)]
        parent_cost = self.parent.costs[cost] if self.parent else None
        limits = [limit for limit in self.ledger(first) if limit.cost == cost]
        side = "min" if limits and all(limit.least for limit in limits) else "max"
        return Frontier(cost, best, points, False, self.solver, side, parent_cost, self.lower_is_better)

    def strips(self, children: Sequence[Child], library: Library | None) -> tuple[list[Strip], str]:
        """(rows of the architecture map, what they show). With a library, they show the parameters per slot as shares
        of the parent's; otherwise the cost of the first budget per layer as shares of the layer's most expensive
        candidate."""
        if library is None:
            cost = next(iter(self.limited_costs), "")
            most = [max((each.costs.get(cost, 0.0) for each in layer.values()), default=0.0) for layer in self.layers]
            rows = [
                Strip(child.title, "layer", child.choice, [
                    layer[name].costs.get(cost, 0.0) / top if name in layer and top else None
                    for layer, name, top in zip(self.layers, child.choice, most, strict=True)
                ])
                for child in children
            ]  # fmt: skip
            return rows, f"share of the dearest candidate's {cost_label(cost).partition(',')[0]}"
        rows = []
        for child in children:
            halves = library.choices(child.choice)
            for slot, label in zip(SLOTS, ("attention", "FFN"), strict=True):
                names = [getattr(half, slot) for half in halves]
                shares = [
                    _parameter_share(getattr(layer, slot), name)
                    for layer, name in zip(library.layers, names, strict=True)
                ]
                rows.append(Strip(child.title, label, names, shares))
        return rows, "share of the parent's parameters"


def _parameter_share(variants: Mapping[str, Any], name: str) -> float | None:
    own = next(variant.parameters for variant in variants.values() if variant.parent)
    return variants[name].parameters / own if name in variants and own else None


def read_search(data: Mapping[str, Any], problem: Problem, library: Library | None, where: str) -> Search:
    """Reads what `lnlit search solve` wrote: a `SolverResult` with the further keys "solver", "baselines" and
    "frontier".

    Raises `UserError` for other data and for choices that the problem does not have, and with the solver's message if
    there is no solution.
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
    parent = _parent(problem, library)
    name = "optimum" if result.solutions[0].bound is not None else _title(str(data.get("solver", "found")))
    try:
        others = {key: each for key, each in data.get("baselines", {}).items() if key != data.get("solver")}
        baselines = [child for key, each in others.items() for child in _baseline(key, each, where)]
        sweep = _sweep(data.get("frontier") or [], str(data.get("solver")), name, parent, problem)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: baselines or frontier cannot be read: {type(error).__name__} {error}.") from error
    children = tuple(map(Child.of, titles, result.solutions))
    return Search(problem, result.status, children, tuple(baselines), sweep, parent, name)


def _parent(problem: Problem, library: Library | None) -> Child | None:
    """The parent as a solution: from the library, or else the single candidate per layer with score 0. None if it is
    unknown."""
    names: list[str] = []
    for index, layer in enumerate(problem.layers):
        own = str(library.layers[index].parent) if library else None
        found = [choice.name for choice in layer if (choice.score == 0 if own is None else choice.name == own)]
        if len(found) != 1:
            return None
        names += found
    free = problem.replace(forbidden=())
    return Child(tuple(names), *free.totals(names), title="parent")


def _baseline(name: str, data: Mapping[str, Any], where: str) -> list[Child]:
    """The baseline's best solution. For a method that draws many, also their mean."""
    found = SolverResult.from_json(data, f"{where}: baselines.{name}").solutions
    if len(found) < 2:
        return [Child.of(_title(name), solution) for solution in found]
    means = {cost: fmean(solution.costs[cost] for solution in found) for cost in found[0].costs}
    mean = Child((), fmean(each.score for each in found), means, title=f"{_title(name)}, mean of {len(found)}")
    return [Child.of(f"{_title(name)}, best of {len(found)}", found[0]), mean]


def _sweep(
    rows: Sequence[Mapping[str, Any]], solver: str, name: str, parent: Child | None, problem: Problem
) -> Frontier | None:
    """One series of points per solver, from rows of `lnlit.search.targets.frontier`. Infeasible limits have no
    point. If several workloads have costs of their own, the limit itself stands for the cost."""
    series: dict[str, list[Point]] = {}
    for row in rows:
        if row["score"] is not None:
            cost = row["costs"].get(row["cost"], row["value"])
            series.setdefault(row["solver"], []).append(Point(cost, row["score"], row["bound"]))
    best = series.pop(solver, [])
    if not best:
        return None
    cost, side = rows[0]["cost"], rows[0]["side"]
    parent_cost = parent.costs.get(cost) if parent else None
    others = {_title(key): points for key, points in series.items()}
    return Frontier(cost, best, others, True, name, side, parent_cost, problem.objective == "minimize")


def _title(solver: str) -> str:
    return _TITLES.get(solver, solver.replace("_", " "))


def read_measured(data: Mapping[str, Any], where: str) -> list[Measured]:
    """Reads `{"models": [{"name": ..., "predicted": {cost: value}, "measured": {cost: value}}]}`. Raises `UserError`
    for other data, and for a measured cost without a prediction in a model that has others."""
    try:
        points = [
            Measured(
                str(model["name"]), cost, float(model["predicted"][cost]) if model["predicted"] else nan, float(value)
            )
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
