"""Every bad problem ends in one line that names the place."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import Problem, Solution, SolverResult

GOOD: dict[str, Any] = {
    "layers": [
        [{"name": "own", "score": 0, "costs": {"m": 2.0}}, {"name": "noop", "score": 1.5, "costs": {"m": 0}}],
        [{"name": "own", "score": 0.0, "costs": {"m": 2}}],
    ],
    "objective": "minimize",
    "budgets": [{"cost": "m", "max": 5}],
    "base_costs": {"m": 1.0},
    "counts": [{"names": "no*", "max": 1}],
    "forbidden": [{"layer": 0, "names": "noop"}],
    "scenarios": [{"name": "one", "budgets": [{"cost": "m", "min": 1}]}],
}


def test_json_round_trip():
    problem = Problem.from_json(GOOD)
    assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem
    result = SolverResult("optimal", (Solution(("own", "own"), 0.0, {"m": 5.0}, 0.0, 0.0, 0.1, "one"),), message="x")
    assert SolverResult.from_json({**json.loads(json.dumps(result.to_json())), "frontier": []}) == result


NAN, INF = float("nan"), float("inf")
CHOICE = "layers", 0, 1


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("budget",), [], "problem: unknown key 'budget'. Did you mean 'budgets'?"),
        ((*CHOICE, "cost"), {}, "problem.layers[0][1]: unknown key 'cost'. Did you mean 'costs'?"),
        ((*CHOICE, "score"), NAN, "problem.layers[0][1].score: expected a finite number, got nan"),
        ((*CHOICE, "score"), -INF, "score: expected a finite number, got -inf"),
        ((*CHOICE, "score"), 10**400, "score: expected a finite number, got 1000000"),
        ((*CHOICE, "costs", "m"), 1e301, "costs['m']: expected a finite number, 0 or more, got 1e+301"),
        ((*CHOICE, "score"), "0.1", "score: expected a finite number, got '0.1'"),
        ((*CHOICE, "score"), True, "score: expected a finite number, got True"),
        (
            (*CHOICE, "costs"),
            {},
            "problem.layers[0][1] (noop).costs: all choices need the same costs; this one differs in: m",
        ),
        ((*CHOICE, "costs", "n"), 1, "this one differs in: n"),
        ((*CHOICE, "costs"), [1], "problem.layers[0][1].costs: expected a mapping, got [1]"),
        ((*CHOICE, "costs", "m"), -1, "problem.layers[0][1].costs['m']: expected a finite number, 0 or more, got -1"),
        ((*CHOICE, "costs", "m"), INF, "costs['m']: expected a finite number, 0 or more, got inf"),
        ((*CHOICE, "name"), "own", "problem.layers[0][1].name: expected a name of its own within the layer, got 'own'"),
        (("layers", 1), [], "problem.layers[1]: has no choices"),
        (("layers", 1), 3, "problem.layers[1]: expected a list, got 3"),
        (("layers",), [], "problem.layers: there are none"),
        (
            ("objective",),
            "minimise",
            "problem.objective: expected one of minimize, maximize, got 'minimise'",
        ),
        (("budgets", 0, "cost"), "mm", "problem.budgets[0].cost: unknown cost 'mm'. Did you mean 'm'?"),
        (("budgets", 0), {"cost": "m"}, "problem.budgets[0]: a budget needs 'min', 'max' or both"),
        (("budgets", 0, "max"), NAN, "problem.budgets[0].max: expected a finite number"),
        (("budgets", 0, "min"), 6, "problem.budgets: m has min 6 above max 5"),
        (("scenarios", 0, "budgets", 0, "min"), 9, "problem.scenarios[0].budgets: m has min 9 above max 5"),
        (("scenarios",), [{"name": "a"}, {"name": "a"}], "problem.scenarios[0].name: expected a name of its own"),
        (("base_costs", "m"), -1, "problem.base_costs['m']: expected a finite number, 0 or more, got -1"),
        (("base_costs",), [], "problem.base_costs: expected a mapping, got []"),
        (("counts", 0, "names"), "nope", "problem.counts[0].names: 'nope' matches no choice. There are noop, own."),
        (("counts", 0, "min"), 2, "problem.counts[0]: min 2 is above max 1"),
        (("counts", 0, "max"), 1.5, "problem.counts[0].max: expected a whole number, 0 or more, got 1.5"),
        (("counts", 0), {"names": "own", "min": 3}, "problem.counts[0]: min 3 is above the layers, 2"),
        (("forbidden", 0, "layer"), 2, "problem.forbidden[0].layer: expected a layer from 0 to 1, got 2"),
        (("forbidden", 0, "names"), "*", "problem.forbidden[0]: '*' leaves layer 0 without a choice"),
        (("num_solutions",), 0, "problem.num_solutions: expected a whole number, 1 or more, got 0"),
        (("num_solutions",), 3, "problem.num_solutions: 3 solutions, but only 1 can differ as max_overlap asks"),
        (("max_overlap",), 1.0, "problem.max_overlap: expected a share of the layers from 0 to below 1, got 1.0"),
        (("max_overlap",), NAN, "problem.max_overlap: expected a finite number"),
    ],
)
def test_one_line_names_the_place(path: tuple, value: Any, message: str):
    data = copy.deepcopy(GOOD)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UserError) as error:
        Problem.from_json(data)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match="problem: the key 'layers' is missing"):
        Problem.from_json({})


def test_a_limit_that_is_met_exactly_is_kept():
    layers = [[{"name": "x", "score": 0, "costs": {"m": 0.1}}]] * 10
    problem = Problem.from_json({"layers": layers, "budgets": [{"cost": "m", "max": 1.0}]})
    assert not problem.violations(["x"] * 10)
    assert problem.replace(budgets=Problem.from_json({"layers": layers}).budgets).limits() == {}


def test_solving_imports_no_torch():
    code = "import lnlit.stages.solve, lnlit.search.baselines, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
