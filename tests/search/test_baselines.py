"""What each baseline is, on problems small enough to work out by hand."""

from __future__ import annotations

from lnlit import registry
from lnlit.interfaces import Budget, Choice, Count, Problem, Scenario


def layer(*choices: tuple[str, float, float]) -> tuple[Choice, ...]:
    return tuple(Choice(name, score, {"size": size}) for name, score, size in choices)


def choices(name: str, problem: Problem, **options) -> tuple[str, ...]:
    return registry.build("solver", name, **options).solve(problem).solutions[0].choice


def test_greedy_walks_layers_by_mean_score_and_carries_the_rest():
    sensitive = layer(("full", 0.0, 4.0), ("half", 5.0, 2.0), ("noop", 9.0, 0.0))
    robust = layer(("full", 0.0, 4.0), ("half", 1.0, 2.0), ("noop", 2.0, 0.0))
    problem = Problem((sensitive, robust), budgets=(Budget("size", max=6.0),))
    assert choices("greedy", problem) == ("full", "half")  # shares of 3: robust takes 2 and leaves 1 for the other's 4
    assert choices("greedy", problem.replace(layers=(robust, sensitive))) == ("half", "full")
    tighter = problem.replace(budgets=(Budget("size", max=5.0),))
    assert choices("greedy", tighter) == ("half", "half")  # 2.5 + 0.5 is no room for 4, though 5 - 0 would be


def test_greedy_maximises_too():
    steps = layer(("full", 9.0, 4.0), ("half", 5.0, 2.0), ("noop", 0.0, 0.0))
    problem = Problem((steps, steps), objective="maximize", budgets=(Budget("size", max=6.0),))
    assert choices("greedy", problem) == ("half", "full")


def test_ratio_greedy_takes_the_cheapest_relief_first_and_fills_up():
    dear = layer(("full", 0.0, 4.0), ("half", 6.0, 2.0))
    cheap = layer(("full", 0.0, 4.0), ("half", 1.0, 2.0), ("noop", 1.9, 0.0))
    problem = Problem((dear, cheap), budgets=(Budget("size", max=6.0),))
    assert choices("ratio_greedy", problem) == (
        "full",
        "half",
    )  # noop sheds more than is needed: 1.9 for the same relief


def test_uniform_is_one_name_everywhere():
    steps = layer(("full", 0.0, 4.0), ("half", 1.0, 2.0), ("noop", 3.0, 0.0))
    problem = Problem((steps,) * 4, budgets=(Budget("size", max=9.0),))
    assert choices("uniform", problem) == ("half",) * 4


def test_uniform_without_a_common_name_that_fits_degrades_evenly():
    first, rest = layer(("full", 0.0, 4.0)), layer(("full", 0.0, 4.0), ("noop", 3.0, 0.0))
    problem = Problem((first, *(rest,) * 5), budgets=(Budget("size", max=16.0),))
    assert choices("uniform", problem) == ("full", "noop", "full", "full", "noop", "full")


def test_random_is_seeded_and_gives_as_many_as_asked():
    steps = layer(*((f"c{i}", float(i), 8.0 - i) for i in range(8)))
    problem = Problem((steps,) * 12, budgets=(Budget("size", max=40.0),), counts=(Count("c0", min=1, max=3),))
    result = registry.build("solver", "random", samples=7).solve(problem)
    assert len(result.solutions) == 7 and len({solution.choice for solution in result.solutions}) > 1
    assert [s.score for s in result.solutions] == sorted(s.score for s in result.solutions)
    assert (
        registry.build("solver", "random", samples=7).solve(problem).solutions[0].choice == result.solutions[0].choice
    )
    assert choices("random", problem, samples=7, seed=1) != result.solutions[0].choice


def test_scenarios_together_give_as_many_solutions_as_wanted_and_as_different():
    steps = layer(("full", 0.0, 4.0), ("half", 1.0, 2.0), ("noop", 3.0, 0.0))
    scenarios = tuple(Scenario(str(room), (Budget("size", max=room),)) for room in (16.0, 14.0, 8.0))
    problem = Problem((steps,) * 4, scenarios=scenarios, max_overlap=0.5)
    result = registry.build("solver", "greedy").solve(problem)
    assert [(s.score, s.scenario) for s in result.solutions] == [(0.0, "16.0")]
    two = registry.build("solver", "greedy").solve(problem.replace(num_solutions=2))
    assert [s.scenario for s in two.solutions] == ["16.0", "8.0"]  # that of 14 differs in one layer only
    assert len(registry.build("solver", "random", samples=7).solve(problem).solutions) == 21
