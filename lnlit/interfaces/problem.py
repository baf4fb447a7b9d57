"""The problem that a `solver` solves: pick one choice per layer so that the sum of scores is best and every budget is
kept.

It is plain data with a JSON form, so a library can be searched without its model:

    {"layers": [[{"name": "kv3+i1536", "score": 0.0, "costs": {"memory_mib": 12.5}}, ...], ...],
     "objective": "minimize", "budgets": [{"cost": "memory_mib", "max": 80000}], "base_costs": {"memory_mib": 54.0},
     "counts": [{"names": "noop+*", "max": 5}], "forbidden": [{"layer": 0, "names": "noop+*"}],
     "num_solutions": 3, "max_overlap": 0.75,
     "scenarios": [{"name": "batch 64", "budgets": [{"cost": "latency_s", "max": 2.0}]}]}

Only `layers` is required. The problem is Puzzle's mixed-integer program (arXiv 2411.19146, appendix B).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lnlit.errors import UserError, did_you_mean
from lnlit.interfaces.patterns import fitting
from lnlit.schema import NotNegative, Size, Whole, check, read

Objective = Literal["minimize", "maximize"]

#: A limit counts as kept up to this fraction of it: the rounding of a sum over a few hundred layers.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Choice:
    """One candidate for one layer. All choices of a problem have the same kinds of cost."""

    name: str
    score: float
    costs: Mapping[str, NotNegative] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """Lower and upper bounds on one total cost of the whole model, `base_costs` included."""

    cost: str
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class Count:
    """How many layers may take a choice whose name matches a pattern (see `fitting`)."""

    names: str
    min: Whole = 0
    max: Whole | None = None


@dataclass(frozen=True)
class Forbidden:
    """Choices that one layer must not take, as a pattern over their names (see `fitting`)."""

    layer: Whole
    names: str


@dataclass(frozen=True)
class Scenario:
    """One of several alternative settings, such as a batch size. Its budgets hold in addition to the problem's own."""

    name: str
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Pick one choice per layer so that the sum of scores is best and all limits are kept.

    `base_costs` are added to every solution's costs. `parent_costs` are the parent model's total costs, for comparison
    only. `library` identifies the block library that the choices come from, by "folder" and "sha256". A solver returns
    up to `num_solutions` solutions, each equal to any better one in at most a fraction `max_overlap` of the layers.
    With `scenarios`, each one is solved on its own and the best scores win.

    The constructor raises `UserError` naming the place of an inconsistent value.
    """

    layers: tuple[tuple[Choice, ...], ...]
    objective: Objective = "minimize"
    budgets: tuple[Budget, ...] = ()
    base_costs: Mapping[str, NotNegative] = field(default_factory=dict)
    parent_costs: Mapping[str, NotNegative] = field(default_factory=dict)
    counts: tuple[Count, ...] = ()
    forbidden: tuple[Forbidden, ...] = ()
    num_solutions: Size = 1
    max_overlap: float = 0.8
    scenarios: tuple[Scenario, ...] = ()
    library: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    def replace(self, **changes: Any) -> Problem:
        return dataclasses.replace(self, **changes)

    def in_scenario(self, scenario: Scenario) -> Problem:
        """The problem with the budgets of one scenario added and without scenarios."""
        return self.replace(budgets=(*self.budgets, *scenario.budgets), scenarios=())

    @property
    def most_shared(self) -> int:
        """The number of layers in which two solutions may be equal."""
        return math.floor(self.max_overlap * len(self.layers) + 1e-9)

    def allowed(self, layer: int) -> list[Choice]:
        """The choices of a layer that are not forbidden."""
        choices = self.layers[layer]
        patterns = [rule.names for rule in self.forbidden if rule.layer == layer]
        gone = {name for pattern in patterns for name in fitting(pattern, (choice.name for choice in choices))}
        return [choice for choice in choices if choice.name not in gone]

    def counted(self, count: Count) -> set[str]:
        """The names of the choices that match the pattern of `count`."""
        return fitting(count.names, (choice.name for layer in self.layers for choice in layer))

    def limits(self) -> dict[str, tuple[float, float]]:
        """(minimum, maximum) of each cost that has a budget. Several budgets on the same cost are intersected."""
        return _limits(self.budgets)

    def picked(self, names: Sequence[str]) -> list[Choice]:
        """The choices with the given names, one per layer. Raises `UserError` for a name that its layer does not
        allow."""
        if len(names) != len(self.layers):
            raise UserError(f"solution: expected {len(self.layers)} choices, one per layer, got {len(names)}.")
        found = []
        for layer, name in enumerate(names):
            allowed = {choice.name: choice for choice in self.allowed(layer)}
            if name not in allowed:
                raise UserError(f"solution: layer {layer} has no choice {name!r}.{did_you_mean(name, allowed)}")
            found.append(allowed[name])
        return found

    def totals(self, names: Sequence[str]) -> tuple[float, dict[str, float]]:
        """(score, costs) of the solution with the given names, `base_costs` included."""
        picked = self.picked(names)
        costs = {
            cost: math.fsum([self.base_costs.get(cost, 0.0), *(choice.costs[cost] for choice in picked)])
            for cost in picked[0].costs
        }
        return math.fsum(choice.score for choice in picked), costs

    def violations(self, names: Sequence[str]) -> list[str]:
        """The limits that a solution breaks, one readable line each. `names` are its choices, one per layer. Scenarios
        and `max_overlap` are not checked."""
        _, costs = self.totals(names)
        broken = []
        for cost, (low, high) in self.limits().items():
            if costs[cost] > high + TOLERANCE * abs(high):
                broken.append(f"{cost} is {costs[cost]:.6g}, above the maximum {high:.6g}")
            if costs[cost] < low - TOLERANCE * abs(low):
                broken.append(f"{cost} is {costs[cost]:.6g}, below the minimum {low:.6g}")
        for count in self.counts:
            counted = self.counted(count)
            found = sum(name in counted for name in names)
            if not count.min <= found <= (len(names) if count.max is None else count.max):
                broken.append(f"{found} layers take {count.names!r}, allowed are {count.min} to {count.max}")
        return broken

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        return _without_none(data if self.library else {key: data[key] for key in data if key != "library"})

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: str = "problem") -> Problem:
        """Reads a problem. Raises `UserError` naming the place of an unknown, missing, mistyped or inconsistent
        entry."""
        return read(cls, data, path)


def _limits(budgets: Sequence[Budget]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for budget in budgets:
        low, high = found.get(budget.cost, (-math.inf, math.inf))
        new_low = -math.inf if budget.min is None else budget.min
        new_high = math.inf if budget.max is None else budget.max
        found[budget.cost] = (max(low, new_low), min(high, new_high))
    return found


# Checks


def _check(problem: Problem) -> None:
    check(problem, "problem")
    if not problem.layers:
        raise UserError("problem.layers: there are none; a problem has at least one layer.")
    if problem.library.keys() not in (set(), {"folder", "sha256"}):
        raise UserError(f"problem.library: expected the keys folder and sha256, got {', '.join(problem.library)}.")
    names = _check_layers(problem.layers)
    for key in ("base_costs", "parent_costs"):
        for cost in getattr(problem, key):
            _known_cost(cost, names, f"problem.{key}")
    _check_budgets(problem.budgets, (), names, "problem.budgets")
    scenarios = [scenario.name for scenario in problem.scenarios]
    for index, scenario in enumerate(problem.scenarios):
        where = f"problem.scenarios[{index}]"
        if scenarios.count(scenario.name) > 1:
            raise UserError(f"{where}.name: expected a name of its own, got {scenario.name!r}.")
        _check_budgets(scenario.budgets, problem.budgets, names, f"{where}.budgets")
    _check_patterns(problem)
    _check_diversity(problem)


def _check_layers(layers: Sequence[Sequence[Choice]]) -> list[str]:
    """Checks every choice and returns the names of the costs."""
    costs = list(layers[0][0].costs) if layers[0] else []
    for index, layer in enumerate(layers):
        if not layer:
            raise UserError(f"problem.layers[{index}]: has no choices; every layer needs at least one.")
        seen = set()
        for position, choice in enumerate(layer):
            where = f"problem.layers[{index}][{position}]"
            check(choice, where)
            if not choice.name or choice.name in seen:
                raise UserError(f"{where}.name: expected a name of its own within the layer, got {choice.name!r}.")
            seen.add(choice.name)
            if choice.costs.keys() != set(costs):
                differing = ", ".join(sorted(choice.costs.keys() ^ set(costs)))
                raise UserError(
                    f"{where} ({choice.name}).costs: all choices need the same costs; this one differs in: {differing}."
                )
    return costs


def _check_budgets(budgets: Sequence[Budget], others: Sequence[Budget], costs: Sequence[str], path: str) -> None:
    for index, budget in enumerate(budgets):
        where = f"{path}[{index}]"
        check(budget, where)
        _known_cost(budget.cost, costs, f"{where}.cost")
        if budget.min is None and budget.max is None:
            raise UserError(f"{where}: a budget needs 'min', 'max' or both.")
    for cost, (low, high) in _limits([*others, *budgets]).items():
        if low > high:
            raise UserError(f"{path}: {cost} has min {low:g} above max {high:g}.")


def _check_patterns(problem: Problem) -> None:
    """Checks the patterns of counts and forbidden choices."""
    size = len(problem.layers)
    every = sorted({choice.name for layer in problem.layers for choice in layer})
    for index, count in enumerate(problem.counts):
        where, high = f"problem.counts[{index}]", size if count.max is None else count.max
        check(count, where)
        if count.min > min(high, size):
            raise UserError(f"{where}: min {count.min} is above {'max' if high < size else 'the layers,'} {high}.")
        _matches(count.names, every, where)
    for index, rule in enumerate(problem.forbidden):
        where = f"problem.forbidden[{index}]"
        check(rule, where)
        if rule.layer >= size:
            raise UserError(f"{where}.layer: expected a layer from 0 to {size - 1}, got {rule.layer!r}.")
        _matches(rule.names, [choice.name for choice in problem.layers[rule.layer]], where)
        if not problem.allowed(rule.layer):
            raise UserError(f"{where}: {rule.names!r} leaves layer {rule.layer} without a choice.")


def _check_diversity(problem: Problem) -> None:
    number, overlap = problem.num_solutions, problem.max_overlap
    if not 0 <= overlap < 1:
        raise UserError(f"problem.max_overlap: expected a share of the layers from 0 to below 1, got {overlap!r}.")
    choices = [len(problem.allowed(layer)) for layer in range(len(problem.layers))]
    most = math.prod(choices) if problem.most_shared else min(choices)
    if number > most:
        raise UserError(f"problem.num_solutions: {number} solutions, but only {most} can differ as max_overlap asks.")


def _matches(pattern: str, names: Sequence[str], where: str) -> None:
    if not fitting(pattern, names):
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise UserError(f"{where}.names: {pattern!r} matches no choice. There are {some}.")


def _known_cost(cost: str, costs: Sequence[str], where: str) -> None:
    if cost not in costs:
        listing = ", ".join(costs) or "none"
        raise UserError(f"{where}: unknown cost {cost!r}.{did_you_mean(cost, costs)} The choices have: {listing}.")


def _without_none(value: Any) -> Any:
    """A copy of JSON data without the keys whose value is None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value
