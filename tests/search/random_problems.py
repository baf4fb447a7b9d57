"""Small problems that mix every kind of constraint, and their answers by trying everything."""

from __future__ import annotations

import itertools
import math
import random

from lnlit.interfaces import Budget, Choice, Count, Forbidden, Problem, Scenario


def random_problem(seed: int) -> Problem:
    """At most 6 layers of at most 5 choices. Some are infeasible, some have choices that are never to be taken."""
    draw = random.Random(seed)
    layers = []
    for _ in range(draw.randint(1, 6)):
        names = draw.sample(["own", "half", "tiny", "linear", "noop"], draw.randint(1, 5))
        layers.append(tuple(_choice(draw, name) for name in names))
    costs = draw.sample(["a", "b", "c"], draw.randint(0, 3))
    base = {cost: draw.uniform(0, 2) for cost in costs if draw.random() < 0.4}
    objective = draw.choice(["minimize", "maximize"])
    near, layers = layers, _punished(draw, layers, 1 if objective == "minimize" else -1)
    every = {choice.name for layer in layers for choice in layer}
    counts = [Count(name, *_range(draw, len(layers))) for name in sorted(every) if draw.random() < 0.15]
    if draw.random() < 0.2:
        counts.append(Count("*o*", 0, draw.randint(0, len(layers)))) if any("o" in n for n in every) else None
    number, overlap = 1, 0.8
    fewest = min(map(len, layers))
    if fewest > 1 and draw.random() < 0.6:
        number, overlap = draw.randint(2, min(fewest, 3)), draw.choice([0.0, 0.3, 0.5, 0.75, 0.9])
    forbidden = [Forbidden(0, layers[0][0].name)] if len(layers[0]) > 3 and draw.random() < 0.4 else []
    budgets = [_budget(draw, near, base, cost) for cost in costs]
    scenarios = []
    if costs and draw.random() < 0.3:
        first, *budgets = budgets
        scenarios = [Scenario("one", (first,)), Scenario("two", (_budget(draw, near, base, costs[0]),))]
    return Problem(
        layers=tuple(layers),
        objective=objective,
        budgets=tuple(budgets),
        base_costs=base,
        counts=tuple(counts),
        forbidden=tuple(forbidden),
        num_solutions=number,
        max_overlap=overlap,
        scenarios=tuple(scenarios),
    )


def _choice(draw: random.Random, name: str) -> Choice:
    whole = draw.random() < 0.3  # equal sums, so that limits are met exactly
    costs = {cost: float(draw.randint(0, 4)) if whole else draw.expovariate(1.0) for cost in "abc"}
    return Choice(name, draw.choice([0.0, draw.lognormvariate(-3, 2), -draw.random()]), costs)


def _punished(draw: random.Random, layers: list, sign: int) -> list:
    """In some problems, choices that are cheap and score as badly as can be, or that no budget can hold."""
    penalty, excess = 10.0 ** draw.choice([0] * 6 + [4, 9, 12, 15, 30]), 10.0 ** draw.choice([0] * 6 + [9, 12])
    found = []
    for layer in layers:
        *others, last = layer
        if others and penalty > 1:
            layer = (*others, Choice(last.name, sign * penalty, dict.fromkeys(last.costs, 0.01)))
        if others and excess > 1 and draw.random() < 0.5:
            costs = {cost: excess if cost == draw.choice("abc") else value for cost, value in others[0].costs.items()}
            layer = (Choice(others[0].name, others[0].score, costs), *layer[1:])
        found.append(layer)
    return found


def _range(draw: random.Random, layers: int) -> tuple[int, int | None]:
    low = draw.choice([0, 0, 1])
    return low, draw.choice([None, draw.randint(low, layers)])


def _budget(draw: random.Random, layers: list, base: dict[str, float], cost: str) -> Budget:
    """Mostly near what a random model costs; sometimes exactly there, sometimes from both sides."""
    total = base.get(cost, 0.0) + sum(draw.choice(layer).costs[cost] for layer in layers)
    low, high = total * draw.choice([1.0, draw.uniform(0.5, 1.1)]), total * draw.choice([1.0, draw.uniform(0.8, 1.5)])
    if draw.random() < 0.2:
        return Budget(cost, min=min(low, high), max=max(low, high))
    return Budget(cost, max=high) if draw.random() < 0.7 else Budget(cost, min=low)


def feasible(problem: Problem) -> list[tuple[str, ...]]:
    """Every choice that keeps all limits of a problem without scenarios, best score first."""
    layers = [[choice.name for choice in problem.allowed(layer)] for layer in range(len(problem.layers))]
    sign = -1 if problem.objective == "maximize" else 1
    kept = [names for names in itertools.product(*layers) if not problem.violations(names)]
    return sorted(kept, key=lambda names: sign * problem.totals(names)[0])


def shared(one: tuple[str, ...], two: tuple[str, ...]) -> int:
    return sum(a == b for a, b in zip(one, two, strict=True))


def distance(value: float, low: float, high: float) -> float:
    return max(low - value, value - high, 0.0)


def tightest(problem: Problem) -> dict[str, float]:
    """By how much each budget is missed at least: the other budgets kept, or, where they cannot be, left out too."""
    missed = {}
    for cost, (low, high) in problem.limits().items():
        others = tuple(budget for budget in problem.budgets if budget.cost != cost)
        names = feasible(problem.replace(budgets=others)) or feasible(problem.replace(budgets=()))
        if names:
            missed[cost] = min(distance(problem.totals(choice)[1][cost], low, high) for choice in names)
    return missed


def diverse(problem: Problem, earlier: list[tuple[str, ...]]) -> float:
    """The best score among what shares few enough layers with every earlier solution; NaN where nothing does."""
    for names in feasible(problem):
        if all(shared(names, other) <= problem.most_shared for other in earlier):
            return problem.totals(names)[0]
    return math.nan
