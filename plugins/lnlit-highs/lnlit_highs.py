"""Exact architecture search: Puzzle's mixed-integer program (arXiv 2411.19146, appendix B) in CVXPY, solved by HiGHS.

Array suffixes: L layers, N choices of all layers in order, M limits.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.settings import INFEASIBLE_OR_UNBOUNDED
from scipy import sparse

from lnlit.errors import UserError
from lnlit.interfaces import Budget, Choice, Problem, Solution, Solver, SolverResult
from lnlit.interfaces.problem import TOLERANCE
from lnlit.interfaces.solver import Status

#: Limits and values are scaled to about 1. HiGHS's own tolerances would then accept sums that are wrong by a
#: millionth.
_TOLERANCES = {"mip_feasibility_tolerance": 1e-9, "primal_feasibility_tolerance": 1e-9, "mip_abs_gap": 1e-9}
#: Values are clipped at this number of units, because HiGHS cannot resolve differences of 1 beside much larger values.
_LARGEST = 1e6


class Highs(Solver):
    """Finds the best choice per layer and proves it: status, bound and gap (CVXPY with HiGHS).

    The first solution counts as optimal if its score is within `tolerance` of the best possible one, as a fraction of
    what it gives up against the best choice in every layer. `alternatives_tolerance` is the tolerance of further
    solutions. There are many nearly equal ones, and ranking them exactly would take hours, although scores, measured on
    samples of text, are only accurate to about a percent. The `gap` of a solution is what was proven, relative to its
    score.
    """

    def __init__(self, tolerance: float = 0.0, alternatives_tolerance: float = 2e-3) -> None:
        self.tolerance = tolerance
        self.alternatives_tolerance = alternatives_tolerance

    def solve_one(self, problem: Problem, time_limit_s: float) -> SolverResult:
        end = time.monotonic() + time_limit_s
        program, solutions, late = _Program.of(problem), [], False
        while len(solutions) < problem.num_solutions:
            start = time.perf_counter()
            tolerance = self.alternatives_tolerance if solutions else self.tolerance
            found, program = _minimised_within(problem, program, tolerance, end)
            late = late or found.status == "time_limit"
            if found.picks is None:
                break
            solutions.append(program.solution(problem, found, time.perf_counter() - start))
            program = program.without(found.picks, problem.most_shared)
        status: Status = "time_limit" if late else "optimal" if solutions else "infeasible"
        if status == "infeasible":
            return _infeasible(problem, end)
        missing = problem.num_solutions - len(solutions)
        message = ""
        if missing:
            why = "the time is up" if status == "time_limit" else "no others differ enough and keep all limits"
            message = f"found {len(solutions)} of {problem.num_solutions} solutions: {why}"
        elif status == "time_limit":
            message = "the time ended before the proof; `gap` says how far the score may be from the best"
        return SolverResult(status, tuple(solutions), message=message)


@dataclass(frozen=True)
class _Found:
    """A minimum of the program, in its units. `picks` are indices into its N columns."""

    status: Status
    picks: np.ndarray | None = None
    value: float = math.inf
    bound: float = 0.0


@dataclass(frozen=True)
class _Program:
    """Minimise value_N @ x over one choice in each of `layers` layers, subject to rows_MN @ x <= bound_M.

    Columns are the choices that can be part of a solution at all. Values are scores above the layer's best one, so that
    the best model without limits has value 0; `score = sign * (value + offset)`.
    """

    layers: int
    choices: tuple[Choice, ...]
    layer_N: np.ndarray
    value_N: np.ndarray
    rows_MN: np.ndarray
    bound_M: np.ndarray
    sign: float = 1.0
    offset: float = 0.0

    @classmethod
    def of(cls, problem: Problem) -> _Program:
        layers = [problem.allowed(layer) for layer in range(len(problem.layers))]
        choices = tuple(choice for layer in layers for choice in layer)
        layer_N = np.repeat(np.arange(len(layers)), [len(layer) for layer in layers])
        sign = -1.0 if problem.objective == "maximize" else 1.0
        kept, rows_MN, bound_M = _rows(problem, choices, layer_N)
        choices = tuple(choices[column] for column in kept)
        program = cls(len(layers), choices, layer_N[kept], np.zeros(len(kept)), rows_MN, bound_M, sign)
        return program.minimising(sign * np.array([choice.score for choice in choices], dtype=float))

    def minimising(self, raw_N: np.ndarray) -> _Program:
        """The same program with another objective."""
        if self.impossible:
            return self
        best_L = np.minimum.reduceat(raw_N, self.starts())
        return dataclasses.replace(self, value_N=raw_N - best_L[self.layer_N], offset=math.fsum(best_L))

    @property
    def impossible(self) -> bool:
        """True if a layer has no choice left."""
        return len(self.starts()) < self.layers

    def starts(self) -> np.ndarray:
        """The first column of each layer."""
        return np.flatnonzero(np.diff(self.layer_N, prepend=-1))

    def only(self, kept: np.ndarray, unit: float) -> _Program:
        """The program with only the columns `kept`, and with values divided by `unit`."""
        choices = tuple(self.choices[column] for column in kept)
        value_N = np.minimum(self.value_N[kept] / unit, _LARGEST)
        columns = {"choices": choices, "layer_N": self.layer_N[kept], "rows_MN": self.rows_MN[:, kept]}
        return dataclasses.replace(self, value_N=value_N, **columns)

    def without(self, picks: np.ndarray, most_shared: int) -> _Program:
        """The same program with the limit that a solution shares at most so many layers with `picks`."""
        row_N = np.zeros(len(self.value_N))
        row_N[picks] = 1.0
        rows_MN, bound_M = np.vstack([self.rows_MN, row_N]), np.append(self.bound_M, most_shared)
        return dataclasses.replace(self, rows_MN=rows_MN, bound_M=bound_M)

    def names_of(self, picks: np.ndarray) -> tuple[str, ...]:
        return tuple(self.choices[pick].name for pick in picks)

    def solution(self, problem: Problem, found: _Found, seconds: float) -> Solution:
        assert found.picks is not None
        names = self.names_of(found.picks)
        score, costs = problem.totals(names)
        bound = self.sign * min(found.bound + self.offset, self.sign * score)
        if math.isclose(score, bound, rel_tol=1e-12):  # units were changed on the way
            bound = score
        gap = abs(score - bound) / max(abs(score), abs(bound)) if score != bound else 0.0
        return Solution(names, score, costs, bound, gap, seconds)


def _rows(
    problem: Problem, choices: Sequence[Choice], layer_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(columns, rows, bounds): the choices that can keep every limit beside the cheapest choices of other layers, and
    the limits as rows over them.

    A usage so low that the limit holds whatever the other layers choose is raised to the highest such usage. Each row
    counts usage above the layer's minimum, and is divided by the budget left above these minima. The solutions stay the
    same, and entries are between 0 and 1 even if some choices cost far more than the budget or almost nothing.
    """
    sides: list[tuple[np.ndarray, float, bool]] = []
    for cost, (low, high) in problem.limits().items():
        usage_N = np.array([choice.costs[cost] for choice in choices], dtype=float)
        base = problem.base_costs.get(cost, 0.0)
        sides += [(usage_N, high - base + TOLERANCE * abs(high), True)] if math.isfinite(high) else []
        sides += [(-usage_N, base - low + TOLERANCE * abs(low), True)] if math.isfinite(low) else []
    for count in problem.counts:
        counted = problem.counted(count)
        usage_N = np.array([choice.name in counted for choice in choices], dtype=float)
        sides += [] if count.max is None else [(usage_N, float(count.max), False)]
        sides += [(-usage_N, -float(count.min), False)] if count.min else []
    kept, before = np.arange(len(choices)), -1
    rows: list[np.ndarray] = []
    bounds: list[float] = []
    while len(kept) != before and len(kept):
        before, rows, bounds = len(kept), [], []
        for usage_N, bound, is_budget in sides:
            row_N, room = _above_least(usage_N[kept], bound, layer_N[kept], is_budget)
            size = room if is_budget and room > 0 else 1.0
            rows.append(row_N / size)
            bounds.append(room / size)
        fits_N = np.all([row_N <= room for row_N, room in zip(rows, bounds, strict=True)], axis=0)
        kept = kept[np.broadcast_to(fits_N, len(kept))]
    rows_MN = np.array([row_N[: len(kept)] for row_N in rows]).reshape(len(rows), len(kept))
    return kept, rows_MN, np.array(bounds)


def _above_least(usage_N: np.ndarray, bound: float, layer_N: np.ndarray, is_budget: bool) -> tuple[np.ndarray, float]:
    """(row, room): usage above the minimum of each layer, and the part of `bound` that these minima leave."""
    starts = np.flatnonzero(np.diff(layer_N, prepend=-1))
    sizes = np.diff(starts, append=len(layer_N))
    if is_budget:
        most = np.maximum.reduceat(usage_N, starts).tolist()
        rounding = 1e-12 * math.fsum(map(abs, [bound, *most]))
        enough_L = [bound - math.fsum(most[:layer] + most[layer + 1 :]) - rounding for layer in range(len(most))]
        usage_N = np.maximum(usage_N, np.repeat(np.minimum(enough_L, most), sizes))
    least_L = np.minimum.reduceat(usage_N, starts)
    return usage_N - np.repeat(least_L, sizes), bound - math.fsum(least_L)


def _minimised_within(problem: Problem, program: _Program, tolerance: float, end: float) -> tuple[_Found, _Program]:
    """The minimum among solutions that keep the problem's limits exactly. A solution that only HiGHS's tolerance
    accepts is excluded by a cut, and the program with these cuts is returned too."""
    while True:
        found = _minimised(program, tolerance, end)
        if found.picks is None or not problem.violations(program.names_of(found.picks)):
            return found, program
        if time.monotonic() > end:
            return _Found("time_limit", bound=found.bound), program
        program = program.without(found.picks, program.layers - 1)


def _minimised(program: _Program, tolerance: float, end: float) -> _Found:
    """The minimum of a program, proven to `tolerance`.

    HiGHS's tolerances are absolute and fit differences near 1, so values are divided by a unit, at first their median.
    If the solution's value has another order of magnitude, or some values are so large that the rest is lost to
    rounding, the program is solved again: in units of the solution's value per layer, and without the choices whose
    value alone exceeds that of the whole solution.
    """
    if program.impossible:
        return _Found("infeasible")
    positive_N = program.value_N[program.value_N > 0]
    unit, columns = float(np.median(positive_N)) if len(positive_N) else 1.0, np.arange(len(program.value_N))
    best: _Found | None = None
    while True:
        found = _in_core(program.only(columns, unit), tolerance, end)
        if found.picks is None:
            late = _Found("time_limit", bound=found.bound * unit)
            return found if best is None else dataclasses.replace(late, picks=best.picks, value=best.value)
        picks = columns[found.picks]
        value, bound = math.fsum(program.value_N[picks]), found.bound * unit
        best = _Found(found.status, picks, value, min(bound, value))
        share = value / program.layers
        fair = unit / 100 <= share <= 100 * unit and program.value_N[columns].max() <= _LARGEST * unit
        if value == 0 or fair:
            return best
        columns, unit = columns[program.value_N[columns] <= value], share


def _in_core(program: _Program, tolerance: float, end: float) -> _Found:
    """The minimum of a program, proven to `tolerance`, found in a small core of its columns.

    The linear relaxation gives a price p >= 0 to every limit. Any solution then costs at least floor = sum over layers
    of min(value + p @ row) - p @ bound, and a solution with a choice of reduced cost r at least floor + r. (This
    Lagrangian bound holds for any p, so rounding in the relaxation cannot invalidate the proof.) Only the choices with
    r <= width are searched. A minimum of at most floor + width is the minimum of the whole program; any other one shows
    how wide the core must be.
    """
    status, price_M = _relaxed(program, end)
    if status == "infeasible":
        return _Found("infeasible")
    priced_N = program.value_N + price_M @ program.rows_MN
    least_L = np.minimum.reduceat(priced_N, program.starts())
    floor = max(float(least_L.sum() - price_M @ program.bound_M), 0.0)
    reduced_N = priced_N - least_L[program.layer_N]
    size = min(3 * len(least_L), len(reduced_N) - 1)
    width = float(np.partition(reduced_N, size)[size])
    while True:
        kept = np.flatnonzero(reduced_N <= width)
        found = _integer(program, kept, tolerance, end)
        beyond = math.inf if len(kept) == len(reduced_N) else floor + width
        if found.status == "infeasible" and beyond < math.inf:
            width = max(4 * width, 1e-3) if len(kept) < len(reduced_N) / 2 else math.inf
            continue
        found = dataclasses.replace(found, bound=max(min(found.bound, beyond), floor))
        if found.status != "optimal" or found.value - min(beyond, found.value) <= tolerance * found.value:
            return found
        width = (found.value - floor) * (1 + 1e-9) + 1e-12


def _relaxed(program: _Program, end: float) -> tuple[Status, np.ndarray]:
    """(status, prices of the rows) of the linear relaxation. If it has no answer, the prices are 0, which prove
    less."""
    if not len(program.bound_M):
        return "optimal", np.zeros(0)
    x = cp.Variable(len(program.value_N), nonneg=True)
    limits: Any = sparse.csr_array(program.rows_MN) @ x <= program.bound_M
    one_each: Any = _layers(program.layer_N) @ x == 1
    status = _run(cp.Problem(cp.Minimize(program.value_N @ x), [one_each, limits]), end)
    prices = limits.dual_value
    return status, np.zeros(len(program.bound_M)) if prices is None else np.maximum(prices, 0.0)


def _layers(layer_N: np.ndarray) -> sparse.csr_array:
    """A matrix [L, N] with 1 if a choice belongs to a layer, else 0."""
    columns = np.arange(len(layer_N))
    return sparse.csr_array((np.ones(len(layer_N)), (layer_N, columns)))


def _integer(program: _Program, kept: np.ndarray, tolerance: float, end: float) -> _Found:
    """The integer minimum over the columns `kept`."""
    x = cp.Variable(len(kept), boolean=True)
    constraints: list[Any] = [_layers(program.layer_N[kept]) @ x == 1]
    if len(program.bound_M):
        constraints.append(sparse.csr_array(program.rows_MN[:, kept]) @ x <= program.bound_M)
    model = cp.Problem(cp.Minimize(program.value_N[kept] @ x), constraints)
    status = _run(model, end, mip_rel_gap=tolerance, **_TOLERANCES)
    if status == "infeasible":
        return _Found(status)
    info: Any = model.solver_stats.extra_stats if model.solver_stats else None
    bound = float(info.mip_dual_bound) if info else 0.0
    chosen = [] if x.value is None else np.flatnonzero(x.value > 0.5)
    if len(chosen) != program.layers:  # stopped before a first solution
        return _Found("time_limit", bound=bound)
    picks = kept[chosen]
    value = float(program.value_N[picks].sum())
    return _Found(status, picks, value, min(bound, value))


def _run(model: cp.Problem, end: float, **options: float) -> Status:
    left_s = max(end - time.monotonic(), 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a solution that may be inaccurate: its status, bound and gap tell
        try:
            model.solve(solver=cp.HIGHS, time_limit=left_s, threads=1, **options)
        except cp.SolverError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"HiGHS cannot solve this problem: {reason} Try another solver, such as greedy.") from error
    if model.status in (cp.INFEASIBLE, INFEASIBLE_OR_UNBOUNDED):  # a choice of choices is never unbounded
        return "infeasible"
    return "optimal" if model.status == cp.OPTIMAL else "time_limit"


# Problems without a solution


def _infeasible(problem: Problem, end: float) -> SolverResult:
    """The result for an infeasible problem: for each budget, the nearest reachable total while all other limits hold.
    If the budgets contradict each other, only counts and forbidden choices are kept. The message says so if the time
    was up."""
    tightest, lines, late = {}, [], False
    for cost, (low, high) in problem.limits().items():
        others = tuple(budget for budget in problem.budgets if budget.cost != cost)
        condition = "while all else holds"
        status, value = _nearest(problem, cost, others, end)
        if status == "infeasible":
            condition = "by itself: other limits contradict each other too"
            status, value = _nearest(problem, cost, (), end)
        late = late or status == "time_limit"
        if value is not None:
            tightest[cost] = value
            asked = " and ".join(
                f"{what} {bound:.6g}" for what, bound in (("at least", low), ("at most", high)) if math.isfinite(bound)
            )
            lines.append(f"{cost}: {asked} asked, {value:.6g} is the nearest reachable {condition}")
    if late:
        lines.append("the time ended before it was clear what else is reachable")
    reason = "; ".join(lines) or "the counts and forbidden choices contradict each other"
    return SolverResult("infeasible", tightest=tightest, message=f"no choice keeps all limits. {reason}")


def _nearest(problem: Problem, cost: str, budgets: tuple[Budget, ...], end: float) -> tuple[Status, float | None]:
    """The reachable total of `cost` nearest to its limits under `budgets`, or None if there is none or no time to prove
    it."""
    low, high = problem.limits()[cost]
    found: list[float] = []
    for sign, bound, other in ((1.0, high, Budget(cost, min=low)), (-1.0, low, Budget(cost, max=high))):
        if math.isfinite(bound):
            open_end = not math.isfinite(low if sign > 0 else high)
            asked = problem.replace(budgets=budgets if open_end else (*budgets, other), num_solutions=1)
            program = _Program.of(asked)
            usage_N = np.array([choice.costs[cost] for choice in program.choices])
            best, _ = _minimised_within(asked, program.minimising(sign * usage_N), 0.0, end)
            if best.status == "time_limit":
                return "time_limit", None
            if best.picks is not None:
                found.append(asked.totals(program.names_of(best.picks))[1][cost])
    nearest = min(found, key=lambda value: max(value - high, low - value), default=None)
    return "infeasible" if nearest is None else "optimal", nearest
