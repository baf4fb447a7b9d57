from __future__ import annotations

import json

import pytest

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import Budget, Choice, Problem, Scenario
from lnlit.search.targets import frontier, with_budget

LAYER = tuple(Choice(f"c{i}", float(i * i), {"size": 4.0 - i, "time": 1.0}) for i in range(5))
PROBLEM = Problem((LAYER,) * 6, budgets=(Budget("size", max=20.0),), num_solutions=2)


def test_rows_are_plain_and_scores_fall_as_the_budget_grows():
    rows = list(frontier(PROBLEM, "size", [0, 6, 12, 18, 24, -1], registry.build("solver", "ratio_greedy")))
    assert json.loads(json.dumps(rows, allow_nan=False))[0]["choice"] == ["c4"] * 6
    assert [row["score"] for row in rows] == [96.0, 54.0, 24.0, 6.0, 0.0, None]
    assert [row["value"] for row in rows] == [0, 6, 12, 18, 24, -1] and rows[-1]["status"] == "not_found"


def test_a_budget_moves_where_it_stands():
    assert with_budget(PROBLEM, "size", "max", 3.0).budgets == (Budget("size", max=3.0),)
    assert with_budget(PROBLEM, "size", "min", 3.0).limits() == {"size": (3.0, 20.0)}
    assert with_budget(PROBLEM, "time", "max", 3.0).limits()["time"][1] == 3.0
    labelled = tuple(Choice(c.name, c.score, {"size @ 8x1+1": c.costs["size"]}) for c in LAYER)
    scenario = Scenario("8x1+1", (Budget("size @ 8x1+1", max=9.0),))
    moved = with_budget(Problem((labelled,), scenarios=(scenario,)), "size", "max", 2.0)
    assert moved.scenarios[0].budgets == (Budget("size @ 8x1+1", max=2.0),)


@pytest.mark.parametrize(("cost", "value", "message"), [("sise", 1.0, "unknown cost 'sise'"), ("size", None, "finite")])
def test_bad_sweeps_are_told(cost, value, message):
    with pytest.raises(UserError, match=message):
        list(frontier(PROBLEM, cost, [value], registry.build("solver", "greedy")))
