"""The exact solver against trying everything; the baselines against the exact solver."""

from __future__ import annotations

import math

import pytest
from random_problems import distance, diverse, feasible, random_problem, tightest

from lnlit import registry
from lnlit.interfaces import Choice, Problem

pytest.importorskip("lnlit_highs", reason="pip install -e plugins/lnlit-highs")

SEEDS = range(200)
BASELINES = ("greedy", "ratio_greedy", "uniform", "random")


def exact():
    return registry.build("solver", "highs", alternatives_gap=0.0)


def alternatives(problem: Problem) -> dict[str | None, Problem]:
    return {s.name: problem.in_scenario(s) for s in problem.scenarios} or {None: problem}


@pytest.mark.parametrize("seed", SEEDS)
def test_it_equals_brute_force(seed: int):
    problem = random_problem(seed)
    result = exact().solve(problem)
    possible = {name: feasible(alone) for name, alone in alternatives(problem).items()}
    assert result.status == ("optimal" if any(possible.values()) else "infeasible")
    for name, alone in alternatives(problem).items():
        found = [solution for solution in result.solutions if solution.scenario == name]
        for position, solution in enumerate(found):
            earlier = [other.choice for other in found[:position]]
            assert solution.score == pytest.approx(diverse(alone, earlier), rel=1e-6, abs=1e-6)
            assert solution.bound == pytest.approx(solution.score, rel=1e-6, abs=1e-6)
            assert not alone.violations(solution.choice)
        if len(found) < problem.num_solutions:
            assert math.isnan(diverse(alone, [solution.choice for solution in found]))
        if not possible[name]:
            prefix = f"{name}: " if name else ""
            reached = {cost: result.tightest.get(prefix + cost) for cost in alone.limits()}
            missed = {c: distance(value, *alone.limits()[c]) for c, value in reached.items() if value is not None}
            assert missed == pytest.approx(tightest(alone), rel=1e-6, abs=1e-6)


def test_the_problems_mix_everything():
    problems = [random_problem(seed) for seed in SEEDS]
    assert 20 < sum(not any(feasible(p) for p in alternatives(problem).values()) for problem in problems) < 120
    for key in ("budgets", "base_costs", "counts", "forbidden", "scenarios"):
        assert sum(bool(getattr(problem, key)) for problem in problems) > 15, key
    assert sum(problem.num_solutions > 1 for problem in problems) > 15


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_keeps_all_limits_and_never_beats_the_optimum(name: str):
    found = 0
    for problem in map(random_problem, SEEDS):
        for alone in alternatives(problem).values():
            possible = feasible(alone)
            result = registry.build("solver", name).solve(alone)  # `solve` refuses a solution that breaks a limit
            assert result.status == ("feasible" if result.solutions else "not_found")
            if result.solutions:
                best, sign = alone.totals(possible[0])[0], -1 if alone.objective == "maximize" else 1
                assert sign * result.solutions[0].score >= sign * best - 1e-9
                found += 1
    assert found > 60


def test_time_that_is_up_is_told():
    layers = tuple(
        tuple(Choice(f"c{j}", abs(math.sin(i * 7 + j * 3)), {"m": abs(math.cos(i + j * j))}) for j in range(20))
        for i in range(60)
    )
    problem = Problem.from_json({**Problem(layers).to_json(), "budgets": [{"cost": "m", "max": 12.0}]})
    result = exact().solve(problem, time_limit_s=0.0)
    assert result.status == "time_limit" and result.message
    assert all(solution.gap is not None and solution.bound is not None for solution in result.solutions)


def test_all_costs_zero_and_one_choice():
    problem = Problem(((Choice("only", 3.0, {"m": 0.0}),),), budgets=())
    (solution,) = exact().solve(problem).solutions
    assert (solution.score, solution.bound, solution.gap) == (3.0, 3.0, 0.0)
