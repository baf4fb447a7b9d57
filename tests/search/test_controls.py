"""Controls lose depth or width alone, and keep all limits."""

from __future__ import annotations

import pytest

from lnlit.interfaces import Budget, Choice, Count, Forbidden, Problem
from lnlit.search.baselines import RatioGreedy
from lnlit.search.controls import controls, steeper
from lnlit.search.library import Library
from lnlit.testing.tiny import tiny_spec
from lnlit.testing.tiny_library import tiny_library

SIZES = {"kv2": 4, "kv4": 6, "kv1": 3, "linear": 1, "noop": 0, "i48": 4, "i40": 3, "i24": 2}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    spec = tiny_spec()
    deep = spec.replace(layers=spec.layers[:1] * 3)
    return tiny_library(tmp_path_factory.mktemp("controls") / "library", "parent", deep)


def problem(library: Library, limit: float, **more) -> Problem:
    """Of three layers, the second costs least to be removed."""
    layers = tuple(
        tuple(
            Choice(str(choice), (8.0 - size) * (1 if layer == 1 else 2), {"size": float(size)})
            for choice in variants.choices()
            for size in [sum(SIZES[half] for half in choice)]
        )
        for layer, variants in enumerate(library.layers)
    )
    return Problem(layers, budgets=(Budget("size", max=limit),), **more)


def found(library: Library, limit: float, **more) -> dict[str, tuple[str, ...]]:
    asked = problem(library, limit, **more)
    solutions = controls(asked, library, RatioGreedy())
    assert all(not asked.violations(solution.choice) for solution in solutions.values())
    assert all(solution.score == asked.totals(solution.choice)[0] for solution in solutions.values())
    return {name: solution.choice for name, solution in solutions.items()}


def test_depth_removes_whole_layers_and_width_narrows_all(library):
    children = found(library, 17)
    assert children["depth"] == ("kv2+i48", "noop+noop", "kv2+i48")
    assert len(set(children["width"])) == 1
    assert children["width"][0] == "kv1+i24"


def test_powers_spread_the_harm_until_no_layer_bears_much(library):
    """Of two ways to save 8, two layers that lose 1 each and one that loses 1.5, the sum prefers the one."""
    layer = (Choice("own", 0.0, {"size": 8.0}), Choice("half", 1.0, {"size": 4.0}), Choice("none", 1.5, {"size": 0.0}))
    asked = Problem((layer,) * 2, budgets=(Budget("size", max=8.0),))
    solver = RatioGreedy()
    assert sorted(solver.solve(asked).solutions[0].choice) == ["none", "own"]
    children = steeper(asked, solver)
    assert list(children) == ["power 1.5", "power 2", "power 3"]
    assert children["power 2"].choice == ("half", "half") == children["power 3"].choice
    assert (children["power 2"].score, children["power 2"].costs) == (2.0, {"size": 8.0})


def test_a_control_that_cannot_keep_the_limits_is_left_out(library):
    assert set(found(library, 9)) == {"depth"}, "the narrowest layer needs 5"
    assert found(library, 0) == {"depth": ("noop+noop",) * 3}
    kept = (Count("linear+*", min=1),)
    assert set(found(library, 17, counts=kept)) == set(), "no control has a linear attention"


def test_rules_of_the_problem_hold_for_controls(library):
    first = found(library, 8, forbidden=(Forbidden(1, "noop+*"),))
    assert first["depth"] == ("noop+noop", "kv2+i48", "noop+noop")
    assert found(library, 18, forbidden=(Forbidden(1, "kv1+*"),))["width"] == ("kv2+i24",) * 3
