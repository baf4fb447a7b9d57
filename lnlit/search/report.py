"""What a search found, as data for pictures and for a page, and what it means in plain words.

Works on any problem and solution of the documented JSON forms (`lnlit.interfaces.solver`); with a block library it also
knows the parent and the parts behind the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces.problem import Choice, Problem
from lnlit.interfaces.solver import Solution
from lnlit.search.charts import Budget, Frontier, Measured, Point, cost_label
from lnlit.search.figures import Strip, plain
from lnlit.search.library import Library, pair_name
from lnlit.specs import NOOP


@dataclass(frozen=True)
class Child:
    """One architecture under a title, as in `lnlit.interfaces.Solution`: a name per layer, total score and costs."""

    title: str
    choice: tuple[str, ...]
    score: float
    costs: Mapping[str, float]
    bound: float | None = None
    gap: float | None = None
    seconds: float | None = None
    scenario: str | None = None

    @classmethod
    def of(cls, title: str, solution: Solution) -> Child:
        return cls(title, **vars(solution))


@dataclass(frozen=True)
class Search:
    """A problem, its solutions (best first) by `solver`, the baselines' at the same budgets, and a sweep over one."""

    problem: Problem
    status: str
    solutions: tuple[Child, ...]
    baselines: tuple[Child, ...] = ()
    sweep: Frontier | None = None
    parent: Child | None = None
    solver: str = "optimum"

    @cached_property
    def layers(self) -> tuple[Mapping[str, Choice], ...]:
        """The candidates of each layer by name."""
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
        """The costs that have a budget, in any scenario."""
        scenarios = chain.from_iterable(scenario.budgets for scenario in self.problem.scenarios)
        return list(dict.fromkeys(budget.cost for budget in chain(self.problem.budgets, scenarios)))

    def ledger(self, child: Child) -> list[Budget]:
        """Every limit of the problem with what the child and the parent use of it."""
        scenario = [each for each in self.problem.scenarios if each.name == child.scenario]
        rows = []
        for limit in chain(self.problem.budgets, *(each.budgets for each in scenario)):
            before = self.parent.costs.get(limit.cost) if self.parent else None
            for value, least in ((limit.max, False), (limit.min, True)):
                if value is not None:
                    rows.append(Budget(limit.cost, value, child.costs[limit.cost], before, least))
        return rows

    def chart(self) -> Frontier | None:
        """The sweep where there is one, else the solutions on the first budget's cost; None without any budget."""
        cost = next(iter(self.limited_costs), "")
        if self.sweep or not cost:
            return self.sweep
        ways = {"further solutions": self.solutions[1:], **{each.title: (each,) for each in self.baselines}}
        points = {way: [Point(c.costs[cost], c.score) for c in children] for way, children in ways.items() if children}
        first = self.solutions[0]
        best = [Point(first.costs[cost], first.score, first.bound)]
        parent_cost = self.parent.costs[cost] if self.parent else None
        limits = [budget for budget in self.ledger(first) if budget.cost == cost]
        side = "min" if limits and all(budget.least for budget in limits) else "max"
        return Frontier(cost, best, points, False, self.solver, side, parent_cost, self.lower_is_better)


def parent_child(problem: Problem, library: Library | None) -> Child | None:
    """The parent as a choice: what the library says, else the one candidate per layer that scores 0, else None."""
    names: list[str] = []
    for index, layer in enumerate(problem.layers):
        own = pair_name(*library.parent_names(index)) if library else None
        found = [choice.name for choice in layer if (choice.score == 0 if own is None else choice.name == own)]
        if len(found) != 1:
            return None
        names += found
    free = problem.replace(forbidden=())
    return Child("parent", tuple(names), *free.totals(names))


def strips(search: Search, children: Sequence[Child], library: Library | None) -> tuple[list[Strip], str]:
    """Rows of the architecture map, and what they show: with a library parameters per slot, as shares of the parent's,
    else the first budget's cost per layer, as shares of the layer's dearest candidate's."""
    if library is None:
        cost = next(iter(search.limited_costs), "")
        rows = [_whole_layers(search, child, cost) for child in children]
        return rows, f"share of the dearest candidate's {cost_label(cost).partition(',')[0]}"
    rows = []
    for child in children:
        halves = [name.partition("+")[::2] for name in child.choice]
        for at, (slot, label) in enumerate((("attention", "attention"), ("ffn", "FFN"))):
            names = [half[at] for half in halves]
            shares = [_parameter_share(getattr(library.layers[i], slot), name) for i, name in enumerate(names)]
            rows.append(Strip(child.title, label, names, shares))
    return rows, "share of the parent's parameters"


def trade_in_words(search: Search, child: Child, measured: Sequence[Measured] = ()) -> list[str]:
    """What was given up for what, one plain sentence or two per item."""
    sentences = [*_changes(search, child), *_gains(search, child), *_losses(search, child)]
    if measured:
        right = sum(abs(point.error) <= 0.1 for point in measured)
        worst = max(measured, key=lambda point: abs(point.error))
        sentences.append(
            f"{right} of {len(measured)} predicted costs are within 10 % of what was measured; "
            f"the worst is {worst.cost} of {worst.name}, {worst.error:+.0%} off."
        )
    return sentences


def _changes(search: Search, child: Child) -> Iterator[str]:
    total = len(child.choice)
    if search.parent is None:
        return
    parent = search.parent.choice
    same = sum(mine == theirs for mine, theirs in zip(child.choice, parent, strict=True))
    yield f"{same} of {total} layers are the parent's own."
    if not all("+" in name for name in (*child.choice, *parent)):
        return
    halves = [name.partition("+")[::2] for name in child.choice]
    before = [name.partition("+")[::2] for name in parent]
    for at, slot in enumerate(("Attention", "FFN")):
        changes = Counter(_change(half[at], own[at]) for half, own in zip(halves, before, strict=True))
        ends = {"removed": -1, "unchanged": 1}
        counts = [f"{change} in {_layers(n)}" for change, n in sorted(changes.items(), key=lambda c: ends.get(c[0], 0))]
        yield f"{slot}: {', '.join(counts)}."


def _gains(search: Search, child: Child) -> Iterator[str]:
    for row in search.ledger(child):
        name, _, unit = cost_label(row.cost).partition(", ")
        used = f"{plain(row.used)} {unit}".strip()
        if row.parent:
            used = f"{'down' if row.used < row.parent else 'up'} {abs(row.used / row.parent - 1):.0%} to {used}"
        kept = "within" if row.is_kept else "OUTSIDE"
        limit = f"{'at least' if row.least else 'at most'} {plain(row.limit)}"
        yield f"{name[:1].upper()}{name[1:]}: {used}, {kept} the budget of {limit}."


def _losses(search: Search, child: Child) -> Iterator[str]:
    better = "lower is better" if search.lower_is_better else "higher is better"
    yield f"The scores of the chosen blocks sum to {plain(child.score)} ({better})."
    if child.bound is not None:
        worse = abs(child.score - child.bound) / max(abs(child.score), 1e-12)
        exact = "this is the best choice" if worse <= 1e-6 else f"at most {worse:.2%} better is possible"
        yield f"Proof: no choice from this library within these budgets beats {plain(child.bound)}; {exact}."
    if search.baselines and child.score:
        told = (f"{o.title} {plain(o.score)} ({o.score / child.score:.2f} times that)" for o in search.baselines)
        yield f"At the same budgets: {', '.join(told)}."
    layers = [search.layers[i][name].score for i, name in enumerate(child.choice) if name in search.layers[i]]
    top = sorted(range(len(layers)), key=lambda layer: -abs(layers[layer]))[:3]
    if sum(layers) and len(layers) > 3:
        share = sum(layers[layer] for layer in top) / sum(layers)
        yield f"Layers {', '.join(map(str, sorted(top)))} account for {share:.0%} of the score."


def _change(name: str, parent: str) -> str:
    if name == parent:
        return "unchanged"
    return "removed" if name == NOOP.type else name


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"


def _parameter_share(variants: Mapping[str, Any], name: str) -> float | None:
    own = next(variant.parameters for variant in variants.values() if variant.parent)
    return variants[name].parameters / own if name in variants and own else None


def _whole_layers(search: Search, child: Child, cost: str) -> Strip:
    shares: list[float | None] = []
    for layer, name in zip(search.layers, child.choice, strict=True):
        most = max((option.costs.get(cost, 0.0) for option in layer.values()), default=0.0)
        shares.append(layer[name].costs.get(cost, 0.0) / most if name in layer and most else None)
    return Strip(child.title, "layer", list(child.choice), shares)
