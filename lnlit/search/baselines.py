"""Heuristic solvers, which the optimum is compared with in every report. They need no solver library.

Array suffixes: L layers, J choices of a layer (padded), R limits (the budgets, then the counts as 0/1 usage).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from lnlit.interfaces import Problem, Solution, Solver, SolverResult
from lnlit.interfaces.problem import TOLERANCE

T = TypeVar("T")

#: The relative excess up to which a limit counts as kept: half of the problem's own tolerance.
_TOLERANCE = TOLERANCE / 2


class Greedy(Solver):
    """Puzzle's own baseline (arXiv 2411.19146, appendix F.2.2).

    Every budget is split equally over the layers. Layers come in ascending order of their mean score over the choices;
    each takes its best choice within its share, and what it leaves goes to the next. Where nothing fits, the choice
    that exceeds the share least is taken and the next layers pay. A total that still breaks a limit is repaired as in
    `ratio_greedy`.
    """

    def solve_one(self, problem: Problem, time_limit_s: float) -> SolverResult:
        clock, table = _Clock(time_limit_s), _Table(problem)
        mean_L = [table.score_LJ[layer, : len(names)].mean() for layer, names in enumerate(table.names)]
        picks_L = np.zeros(len(mean_L), dtype=int)
        used_R = np.zeros_like(table.high_R)
        for done, layer in enumerate(np.argsort(mean_L, kind="stable"), start=1):
            real = len(table.names[layer])
            excess_J = table.excess(used_R + table.usage_LJR[layer, :real], share=done / len(picks_L))
            picks_L[layer] = np.lexsort((table.score_LJ[layer, :real], excess_J))[0]
            used_R += table.usage_LJR[layer, picks_L[layer]]
        return _result(table, [_repaired(table, picks_L, clock)], clock)


class RatioGreedy(Solver):
    """Starts from every layer's best choice, and makes the change with the lowest cost in score per relief until all
    limits are kept. Then it makes the change with the largest gain while one fits.

    Relief is the decrease of the excess, which is summed over limits relative to each limit. A limit that is kept has
    no weight; broken limits have weights by how far they are exceeded.
    """

    def solve_one(self, problem: Problem, time_limit_s: float) -> SolverResult:
        clock, table = _Clock(time_limit_s), _Table(problem)
        picks_L = _repaired(table, table.score_LJ.argmin(1), clock)
        return _result(table, [picks_L if picks_L is None else _filled(table, picks_L, clock)], clock)


class Uniform(Solver):
    """The same choice in every layer: the best of the names that every layer allows and that keep all limits.

    If there is none, the model is degraded evenly: each name in turn replaces the best choice in the smallest number of
    equally spaced layers that keeps all limits (a layer without the name keeps its best), and the best of these
    mixtures wins.
    """

    def solve_one(self, problem: Problem, time_limit_s: float) -> SolverResult:
        clock, table = _Clock(time_limit_s), _Table(problem)
        best_L, layers = table.score_LJ.argmin(1), len(table.names)
        places = {name: table.places(name) for name in dict.fromkeys(name for names in table.names for name in names)}
        found = [place_L for place_L in places.values() if (place_L >= 0).all() and table.keeps(place_L)]
        if not found:
            for place_L in clock.limited(places.values()):
                mixtures = (_spread(best_L, place_L, number) for number in range(layers + 1))
                found += [next((picks_L for picks_L in mixtures if table.keeps(picks_L)), None)]
        kept = [picks_L for picks_L in found if picks_L is not None]
        return _result(table, [min(kept, key=table.score, default=None)], clock)


class Random(Solver):
    """Random architectures of the library that keep all limits: `samples` of them, always the same for one `seed`.

    Every layer draws one of its choices, all equally likely; while a limit is broken, a random change among those that
    bring the model nearer to its limits is made; then, while one fits, a random change that uses more of what the upper
    limits leave: an architecture that wastes half its budget is no fair rival. The solutions are not thinned out by
    `max_overlap`.
    """

    def __init__(self, samples: int = 20, seed: int = 0) -> None:
        self.samples = samples
        self.seed = seed

    def solve_one(self, problem: Problem, time_limit_s: float) -> SolverResult:
        clock, table = _Clock(time_limit_s), _Table(problem)
        draw = np.random.default_rng(self.seed)
        found = [self._sample(table, draw, clock) for _ in clock.limited(range(self.samples))]
        return _result(table, found, clock)

    def wanted(self, problem: Problem, solutions: Sequence[Solution]) -> tuple[Solution, ...]:
        return tuple(solutions)

    def _sample(self, table: _Table, draw: np.random.Generator, clock: _Clock) -> np.ndarray | None:
        picks_L = np.array([draw.integers(len(names)) for names in table.names])
        while not table.keeps(picks_L):
            better = np.argwhere((table.relief(picks_L) > 0) & np.isfinite(table.score_LJ))
            if not len(better) or clock.is_up():
                return None
            layer, choice = draw.choice(better)
            picks_L[layer] = choice
        while len(larger := np.argwhere(table.spends(picks_L) & np.isfinite(table.score_LJ))):
            if clock.is_up():
                break
            layer, choice = draw.choice(larger)
            picks_L[layer] = choice
        return picks_L


class _Clock:
    """The time limit of a solve. `is_late` is true if the time was up at some check, so that something was cut
    short."""

    def __init__(self, time_limit_s: float) -> None:
        self.start = time.perf_counter()
        self.is_late = False
        self._end = self.start + time_limit_s

    def is_up(self) -> bool:
        up = time.perf_counter() > self._end
        self.is_late = self.is_late or up
        return up

    def limited(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items until the time is up."""
        for item in items:
            if self.is_up():
                return
            yield item


class _Table:
    """The allowed choices of a problem as arrays. Lower scores are better, and padding has an infinite score."""

    def __init__(self, problem: Problem) -> None:
        layers = [problem.allowed(layer) for layer in range(len(problem.layers))]
        limits, counts = problem.limits(), problem.counts
        counted = [problem.counted(count) for count in counts]
        width = max(map(len, layers))
        sign = -1.0 if problem.objective == "maximize" else 1.0
        self.problem = problem
        self.names = [[choice.name for choice in layer] for layer in layers]
        self.score_LJ = np.full((len(layers), width), math.inf)
        self.usage_LJR = np.zeros((len(layers), width, len(limits) + len(counts)))
        for index, layer in enumerate(layers):
            self.score_LJ[index, : len(layer)] = [sign * choice.score for choice in layer]
            self.usage_LJR[index, : len(layer)] = [
                [choice.costs[cost] for cost in limits] + [choice.name in names for names in counted]
                for choice in layer
            ]
        base_R = np.array([problem.base_costs.get(cost, 0.0) for cost in limits] + [0.0] * len(counts))
        bounds = [*limits.values(), *((c.min, len(layers) if c.max is None else c.max) for c in counts)]
        low_R, high_R = np.array(bounds, dtype=float).reshape(-1, 2).T
        sizes_R2 = np.abs(np.stack([low_R, high_R]))
        self.slack_2R = _TOLERANCE * np.where(np.isfinite(sizes_R2), sizes_R2, 0.0)
        self.low_R, self.high_R = low_R - base_R, high_R - base_R
        largest_R = np.where(np.isfinite(sizes_R2), sizes_R2, 0.0).max(0)
        self.scale_R = np.where(largest_R > 0, largest_R, 1.0)

    def score(self, picks_L: np.ndarray) -> float:
        return float(self.score_LJ[np.arange(len(picks_L)), picks_L].sum())

    def totals(self, picks_L: np.ndarray) -> np.ndarray:
        return self.usage_LJR[np.arange(len(picks_L)), picks_L].sum(0)

    def excess(self, totals: np.ndarray, share: float = 1.0) -> np.ndarray:
        """How far totals [..., R] exceed `share` of the limits, summed over limits; 0 if all are kept."""
        over = totals - share * self.high_R - self.slack_2R[1]
        under = share * self.low_R - self.slack_2R[0] - totals
        return (np.maximum(np.maximum(over, under), 0.0) / self.scale_R).sum(-1)

    def keeps(self, picks_L: np.ndarray) -> bool:
        return not self.excess(self.totals(picks_L)).any()

    def after(self, picks_L: np.ndarray) -> np.ndarray:
        """The totals [L, J, R] after each single change. They are sums of what stays, because subtracting a large usage
        would keep its rounding errors."""
        own_LR = self.usage_LJR[np.arange(len(picks_L)), picks_L]
        edge_1R = np.zeros_like(own_LR[:1])
        above_LR = np.concatenate([edge_1R, own_LR[:-1]]).cumsum(0)
        below_LR = np.concatenate([own_LR[1:], edge_1R])[::-1].cumsum(0)[::-1]
        return (above_LR + below_LR)[:, None] + self.usage_LJR

    def relief(self, picks_L: np.ndarray) -> np.ndarray:
        """The decrease of the excess by each single change, [L, J]; rounding noise counts as 0."""
        before = self.excess(self.totals(picks_L))
        gain_LJ = before - self.excess(self.after(picks_L))
        return np.where(gain_LJ > 1e-12 * max(before, 1.0), gain_LJ, 0.0)

    def spends(self, picks_L: np.ndarray) -> np.ndarray:
        """True for single changes that keep all limits and use more of the upper ones, bool [L, J]."""
        capped_R = np.where(np.isfinite(self.high_R), 1.0 / self.scale_R, 0.0)
        used_LJ, now = self.after(picks_L) @ capped_R, self.totals(picks_L) @ capped_R
        return (self.excess(self.after(picks_L)) == 0) & (used_LJ > now + 1e-9 * max(abs(now), 1.0))

    def loss(self, picks_L: np.ndarray) -> np.ndarray:
        """The cost of each single change in score, [L, J]."""
        return self.score_LJ - self.score_LJ[np.arange(len(picks_L)), picks_L][:, None]

    def places(self, name: str) -> np.ndarray:
        """The index of the choice of that name in each layer, or -1."""
        return np.array([names.index(name) if name in names else -1 for names in self.names])


def _repaired(table: _Table, picks_L: np.ndarray, clock: _Clock) -> np.ndarray | None:
    """Makes single changes, the lowest cost in score per relief first, until all limits are kept. None if no change
    brings relief."""
    picks_L = picks_L.copy()
    while not table.keeps(picks_L):
        relief_LJ, loss_LJ = table.relief(picks_L), table.loss(picks_L)
        possible_LJ = (relief_LJ > 0) & np.isfinite(loss_LJ)
        if not possible_LJ.any() or clock.is_up():
            return None
        safe_LJ = np.where(possible_LJ, relief_LJ, 1.0)
        price_LJ = np.where(loss_LJ > 0, loss_LJ / safe_LJ, -safe_LJ)  # what gains score too: most relief first
        layer, choice = np.unravel_index(np.where(possible_LJ, price_LJ, math.inf).argmin(), price_LJ.shape)
        picks_L[layer] = choice
    return picks_L


def _filled(table: _Table, picks_L: np.ndarray, clock: _Clock) -> np.ndarray:
    """Makes single changes that keep all limits, the largest gain first, until none gains."""
    while not clock.is_up():
        kept_LJ = table.excess(table.after(picks_L)) == 0
        loss_LJ = np.where(kept_LJ, table.loss(picks_L), math.inf)
        layer, choice = np.unravel_index(loss_LJ.argmin(), loss_LJ.shape)
        changed_L = picks_L.copy()
        changed_L[layer] = choice
        if table.score(changed_L) >= table.score(picks_L) or not table.keeps(changed_L):
            return picks_L
        picks_L = changed_L
    return picks_L


def _spread(best_L: np.ndarray, place_L: np.ndarray, number: int) -> np.ndarray:
    """`best_L` with `place_L` in `number` equally spaced layers that have it."""
    picks_L = best_L.copy()
    chosen = ((np.arange(number) + 0.5) * len(best_L) / max(number, 1)).astype(int)
    picks_L[chosen] = np.where(place_L[chosen] >= 0, place_L[chosen], best_L[chosen])
    return picks_L


def _result(table: _Table, found: Iterable[np.ndarray | None], clock: _Clock) -> SolverResult:
    seconds = time.perf_counter() - clock.start
    solutions = []
    for picks_L in found:
        if picks_L is not None:
            choice = tuple(names[pick] for names, pick in zip(table.names, picks_L, strict=True))
            solutions.append(Solution(choice, *table.problem.totals(choice), seconds=seconds))
    if clock.is_late:
        return SolverResult("time_limit", tuple(solutions), message="the time ended before the search did")
    if not solutions:
        return SolverResult("not_found", message="found no choice within all limits; an exact solver can tell why")
    return SolverResult("feasible", tuple(solutions))
