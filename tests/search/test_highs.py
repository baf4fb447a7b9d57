"""The exact solver against trying everything; the baselines against the exact solver."""

from __future__ import annotations

import itertools
import math

import pytest
from random_problems import distance, diverse, feasible, random_problem, shared, tightest

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import Budget, Choice, Problem

pytest.importorskip("lnlit_highs", reason="pip install -e plugins/lnlit-highs")

SEEDS = range(200)
BASELINES = ("greedy", "ratio_greedy", "uniform", "random")


def exact():
    return registry.build("solver", "highs", alternatives_tolerance=0.0)


def alternatives(problem: Problem) -> dict[str | None, Problem]:
    return {s.name: problem.in_scenario(s) for s in problem.scenarios} or {None: problem}


@pytest.mark.parametrize("seed", SEEDS)
def test_it_equals_brute_force(seed: int):
    problem = random_problem(seed)
    possible = {name: feasible(alone) for name, alone in alternatives(problem).items()}
    for name, alone in alternatives(problem).items():
        result = exact().solve(alone)
        assert result.status == ("optimal" if possible[name] else "infeasible")
        sign = -1 if alone.objective == "maximize" else 1
        for position, solution in enumerate(result.solutions):
            best = diverse(alone, [other.choice for other in result.solutions[:position]])
            assert solution.score == pytest.approx(best, rel=1e-6, abs=1e-6)
            assert solution.bound == pytest.approx(solution.score, rel=1e-6, abs=1e-6)
            assert sign * solution.bound <= sign * best + 1e-9 * abs(best)
            assert not alone.violations(solution.choice)
        if len(result.solutions) < problem.num_solutions:
            assert math.isnan(diverse(alone, [solution.choice for solution in result.solutions]))
        if not possible[name]:
            missed = {c: distance(value, *alone.limits()[c]) for c, value in result.tightest.items()}
            assert missed == pytest.approx(tightest(alone), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if random_problem(seed).scenarios])
def test_scenarios_together_keep_what_one_keeps(seed: int):
    problem = random_problem(seed)
    alone = [exact().solve(one).solutions for one in alternatives(problem).values()]
    found = exact().solve(problem).solutions
    sign = -1 if problem.objective == "maximize" else 1
    assert [s.score for s in found[:1]] == sorted((s.score for one in alone for s in one), key=lambda v: sign * v)[:1]
    assert len(found) <= problem.num_solutions
    pairs = itertools.combinations([solution.choice for solution in found], 2)
    assert all(shared(*pair) <= problem.most_shared for pair in pairs)


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


def layer(*choices: tuple[str, float, float]) -> tuple[Choice, ...]:
    return tuple(Choice(name, score, {"m": size}) for name, score, size in choices)


@pytest.mark.parametrize("penalty", [10.0**power for power in (4, 6, 8, 9, 10, 12, 20, 40, 300)])
def test_a_penalty_far_above_all_scores_drowns_nothing(penalty: float):
    steps = layer(("a", 0.001, 3), ("b", 0.004, 2), ("c", 0.010, 1), ("never", penalty, 0))
    (best,) = exact().solve(Problem((steps,) * 3, budgets=(Budget("m", max=6),))).solutions
    assert (best.score, best.bound, best.gap) == (
        pytest.approx(0.012),
        pytest.approx(0.012),
        pytest.approx(0, abs=1e-9),
    )
    (forced,) = exact().solve(Problem((steps,) * 3, budgets=(Budget("m", max=2.5),))).solutions
    assert forced.choice.count("never") == 1 and forced.bound <= forced.score


@pytest.mark.parametrize("excess", [1e6, 1e9, 1e12, 1e40])
def test_a_cost_that_never_fits_leaves_the_limit_as_it_is(excess: float):
    steps = layer(("a", 0.0, 3), ("b", 1.0, 2), ("c", 3.0, 1))
    layers = ((*steps, *layer(("huge", -1.0, excess))), *(steps,) * 9)
    (best,) = exact().solve(Problem(layers, budgets=(Budget("m", max=17.0),)), time_limit_s=20).solutions
    assert (best.score, best.gap, best.costs["m"]) == (16.0, 0.0, 17.0)


@pytest.mark.parametrize("excess", [1e6, 1e9, 1e12, 1e40])
def test_a_cost_that_is_enough_by_itself_leaves_the_limit_as_it_is(excess: float):
    steps = layer(("a", 3.0, 3), ("b", 1.0, 2), ("c", 0.0, 1))
    layers = ((*steps, *layer(("huge", 99.0, excess))), *(steps,) * 9)
    (best,) = exact().solve(Problem(layers, budgets=(Budget("m", min=23.0),))).solutions
    assert (best.score, best.gap, best.costs["m"]) == (16.0, 0.0, 23.0)  # seven times b, three times a
    (forced,) = exact().solve(Problem(layers, budgets=(Budget("m", min=31.0),))).solutions
    assert forced.choice == ("huge", *("c",) * 9)


def test_the_slack_of_a_limit_is_that_of_the_problem_base_costs_included():
    problem = Problem((layer(("a", 0.0, 1.0), ("b", 1.0, 0.0)),), budgets=(Budget("m", max=1e10),))
    problem = problem.replace(base_costs={"m": 1e10})
    assert not problem.violations(["a"])  # 1 above 10,000,000,000
    assert exact().solve(problem).solutions[0].choice == ("a",)


def test_solutions_that_break_a_limit_by_a_hair_do_not_outlast_the_time(monkeypatch):
    monkeypatch.setattr(Problem, "violations", lambda *_: ["one"])
    result = exact().solve_one(Problem((layer(("a", 0.0, 1.0), ("b", 1.0, 0.0)),) * 30), 0.5)
    assert (result.status, result.solutions) == ("time_limit", ())


def test_time_that_is_up_is_no_contradiction(monkeypatch):
    import lnlit_highs

    problem = Problem((layer(("a", 0.0, 1.0), ("b", 1.0, 0.5)),) * 2, budgets=(Budget("m", max=0.5),))
    monkeypatch.setattr(lnlit_highs, "_integer", lambda *_: lnlit_highs._Found("time_limit"))
    message = exact().solve(problem).message
    assert "the time ended before" in message and "contradict" not in message


def test_a_failure_of_highs_is_one_line(monkeypatch):
    import cvxpy as cp

    def fails(*_, **__):
        raise cp.SolverError("Solver 'HIGHS' failed.\nMore.")

    monkeypatch.setattr(cp.Problem, "solve", fails)
    with pytest.raises(
        UserError, match=r"^HiGHS cannot solve this problem: Solver 'HIGHS' failed\. Try another[^\n]*$"
    ):
        exact().solve(Problem((layer(("a", 0.0, 1.0), ("b", 1.0, 0.5)),)))
