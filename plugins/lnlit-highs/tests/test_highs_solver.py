from __future__ import annotations

import pytest

from lnlit import registry
from lnlit.interfaces import Budget, Choice, Problem
from lnlit.testing.solver_contract import check_solver


def test_contract():
    check_solver("highs")


def knapsack(**changes) -> Problem:
    """Ten equal layers: every step down costs 1, 3, 7 and saves 1, 2, 3."""
    layer = tuple(Choice(f"c{i}", score, {"size": 3.0 - i}) for i, score in enumerate((0.0, 1.0, 3.0, 7.0)))
    return Problem((layer,) * 10, **changes)


def test_the_optimum_its_bound_and_its_gap():
    (solution,) = registry.build("solver", "highs").solve(knapsack(budgets=(Budget("size", max=17.5),))).solutions
    assert (solution.score, solution.costs["size"], solution.gap) == (16.0, 17.0, 0.0)  # seven times 1, three times 3
    assert solution.bound == pytest.approx(16.0)


def test_an_impossible_budget_names_what_is_reachable():
    budgets = (Budget("size", max=-1.0),)
    result = registry.build("solver", "highs").solve(knapsack(budgets=budgets))
    assert (result.status, result.tightest) == ("infeasible", {"size": 0.0})
    assert "size: at most -1 asked, 0 is the nearest reachable" in result.message


def test_alternatives_differ_and_stop_where_none_are_left():
    problem = knapsack(budgets=(Budget("size", max=5.0),), num_solutions=6, max_overlap=0.3).replace(num_solutions=6)
    result = registry.build("solver", "highs").solve(problem)
    choices = [solution.choice for solution in result.solutions]
    for position, one in enumerate(choices):
        assert all(sum(a == b for a, b in zip(one, two, strict=True)) <= 3 for two in choices[:position])
    assert len(choices) == 6 or "differ enough" in result.message
