"""Rounds around whole children, against all children of small problems."""

from __future__ import annotations

from collections import namedtuple
from itertools import pairwise, product

import numpy as np
import pytest

from lnlit.interfaces import Budget, Choice, Problem, Solution
from lnlit.search.baselines import RatioGreedy
from lnlit.search.rounds import CHANGED, around, numbers, rounds, within

LAYERS, CHOICES = 5, 4
Found = namedtuple("Found", "start found best")


def toy(seed: int) -> tuple[Problem, dict[tuple[str, ...], float]]:
    """A problem and what each of its 1024 children realises: errors add up as vectors, so that some cancel each other
    and others do more harm together than alone. Its scores are what each choice does alone."""
    draw = np.random.default_rng(seed)
    size_LC = np.array([4.0, 2.0, 1.0, 0.0])[None] * np.ones((LAYERS, 1))
    error_LCD = draw.normal(size=(LAYERS, CHOICES, 3)) * np.array([0.0, 0.5, 1.0, 2.0])[None, :, None]
    names = [[f"c{choice}" for choice in range(CHOICES)] for _ in range(LAYERS)]
    layers = tuple(
        tuple(
            Choice(names[layer][c], float((error_LCD[layer, c] ** 2).sum()), {"size": size_LC[layer, c]})
            for c in range(CHOICES)
        )
        for layer in range(LAYERS)
    )
    realised = {
        tuple(names[layer][c] for layer, c in enumerate(picks)): float(
            (error_LCD[np.arange(LAYERS), list(picks)].sum(0) ** 2).sum()
        )
        for picks in product(range(CHOICES), repeat=LAYERS)
    }
    return Problem(layers, budgets=(Budget("size", max=9.0),)), realised


def changes_of(problem: Problem, realised):
    def changes(solution):
        child = solution.choice
        return [
            {
                choice.name: realised[(*child[:layer], choice.name, *child[layer + 1 :])] - realised[child]
                for choice in problem.layers[layer]
            }
            for layer in range(len(child))
        ]

    return changes


@pytest.fixture(scope="module")
def highs():
    return pytest.importorskip("lnlit_highs", reason="pip install -e plugins/lnlit-highs").Highs()


def run(problem, realised, start, solver):
    """(the first child's choice, the round's children, the best) of every round."""
    solution = Solution(start, *problem.totals(start))
    found = rounds(problem, solution, lambda child: realised[child.choice], changes_of(problem, realised), solver)
    return [
        Found(r.start.choice, {number: child.choice for number, child in r.found.items()}, r.best.choice) for r in found
    ]


@pytest.mark.parametrize("seed", range(6))
def test_every_round_is_better_within_the_limits_and_the_last_has_no_better_neighbour(highs, seed):
    problem, realised = toy(seed)
    start = highs.solve(problem).solutions[0].choice
    found = run(problem, realised, start, highs)
    path = [start, *(each.best for each in found)]
    assert all(realised[b] < realised[a] for a, b in pairwise(path[:-1]))
    assert path[-1] == path[-2], "the last round improves nothing"
    for each in found:
        for number, child in each.found.items():
            assert not problem.violations(child)
            assert 1 <= sum(a != b for a, b in zip(child, each.start, strict=True)) <= number
    end = path[-1]
    near = [child for child in realised if sum(a != b for a, b in zip(child, end, strict=True)) == 1]
    assert realised[end] <= min(realised[child] for child in near if not problem.violations(child))


def test_rounds_end_nearer_to_the_best_of_all_children_than_the_optimum_of_sums(highs):
    """Over 20 problems, and never farther from it in any."""
    gaps = []
    for seed in range(20):
        problem, realised = toy(seed)
        best = min(value for child, value in realised.items() if not problem.violations(child))
        start = highs.solve(problem).solutions[0].choice
        end = run(problem, realised, start, highs)[-1].best
        gaps.append((realised[start] - best, realised[end] - best))
    before, after = np.array(gaps).T
    assert (after <= before).all()
    assert after.mean() < before.mean() / 2
    assert (after < 1e-12).mean() > (before < 1e-12).mean()


def test_where_scores_do_add_up_one_round_finds_the_best_of_all_children(highs):
    problem, _ = toy(0)
    sums = {
        child: problem.totals(child)[0] for child in product(*[[c.name for c in layer] for layer in problem.layers])
    }
    worst = max((child for child in sums if not problem.violations(child)), key=sums.__getitem__)
    first, *_ = run(problem, sums, worst, highs)
    assert sums[first.best] == pytest.approx(min(s for child, s in sums.items() if not problem.violations(child)))


def test_a_child_that_nothing_may_change_is_left_alone(highs):
    problem, realised = toy(0)
    tight = problem.replace(budgets=(Budget("size", max=0.0),))
    (only,) = run(tight, realised, ("c3",) * LAYERS, highs)
    assert (only.best, only.found) == (("c3",) * LAYERS, {})


def test_a_heuristic_solver_serves_too():
    problem, realised = toy(1)
    start = RatioGreedy().solve(problem).solutions[0].choice
    end = run(problem, realised, start, RatioGreedy())[-1].best
    assert realised[end] <= realised[start] and not problem.violations(end)


def test_changed_layers_are_a_cost_like_any_other():
    problem, _ = toy(0)
    child = ("c0", "c1", "c2", "c3", "c3")
    scored = around(
        problem,
        child,
        [{c.name: 1.0 * (c.name != own) for c in layer} for layer, own in zip(problem.layers, child, strict=True)],
    )
    other = ("c0", "c1", "c3", "c3", "c2")
    assert scored.totals(other)[1][CHANGED] == 2 == scored.totals(other)[0]
    assert within(scored, 1).violations(other) == [f"{CHANGED} is 2, above the maximum 1"]
    assert not within(scored, 2).violations(child)


def test_a_round_s_children_have_the_score_and_costs_of_the_problem_that_was_asked(highs):
    problem, realised = toy(3)
    start = highs.solve(problem).solutions[0]
    for each in rounds(problem, start, lambda s: realised[s.choice], changes_of(problem, realised), highs):
        for child in each.found.values():
            assert (child.score, child.costs, child.bound) == (*problem.totals(child.choice), None)


def test_how_many_layers_may_change():
    assert numbers(1) == [1]
    assert numbers(5) == [1, 2, 3, 4, 5]
    assert numbers(30) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 30]
    assert numbers(126)[-3:] == [64, 96, 126]
