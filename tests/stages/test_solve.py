"""The stage as the command line calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces import Count, SolverResult
from lnlit.search.baselines import Greedy
from lnlit.search.targets import Deployment, Rules, Solutions, Sweep, Target
from lnlit.stages.solve import read_problem, solve


def choice(name: str, score: float, size: float) -> dict:
    return {"name": name, "score": score, "costs": {"size": size}}


LAYER = [choice("full", 0.0, 4.0), choice("half", 1.0, 2.0), choice("noop", 5.0, 0.0)]


def write(folder: Path, **changes) -> str:
    problem = {"layers": [LAYER] * 4, "budgets": [{"cost": "size", "max": 11.0}], **changes}
    (folder / "given.json").write_text(json.dumps(problem))
    return str(folder / "given.json")


def test_a_problem_file_alone(tmp_path: Path):
    pytest.importorskip("lnlit_highs", reason="pip install -e plugins/lnlit-highs")
    out = solve(str(tmp_path / "new" / "solution.json"), write(tmp_path), frontier=Sweep("size", (4.0, 8.0, 16.0)))
    written = json.loads(out.read_text())
    (best,) = SolverResult.from_json(written).solutions
    assert (written["status"], best.score, best.gap, written["solver"]) == ("optimal", 3.0, 0.0, "highs")
    assert read_problem(out.with_name(written["problem"])) == read_problem(tmp_path / "given.json")
    assert written["baselines"].keys() == {"greedy", "ratio_greedy", "uniform", "random"}
    assert all(SolverResult.from_json(found).solutions[0].score >= 3.0 for found in written["baselines"].values())
    exact = [row["score"] for row in written["frontier"] if row["solver"] == "highs"]
    assert exact == [12.0, 4.0, 0.0] and len(written["frontier"]) == 15


def test_an_impossible_budget_says_what_is_reachable_and_writes_nothing(tmp_path: Path):
    pytest.importorskip("lnlit_highs", reason="pip install -e plugins/lnlit-highs")
    budgets, base = [{"cost": "size", "max": 2.0}], {"size": 3.0}
    with pytest.raises(UserError, match="size: at most 2 asked, 3 is the nearest reachable while all else holds"):
        solve(str(tmp_path / "solution.json"), write(tmp_path, budgets=budgets, base_costs=base))
    assert [path.name for path in tmp_path.iterdir()] == ["given.json"]


def test_a_problem_file_has_no_times_to_correct(tmp_path: Path):
    with pytest.raises(UserError, match="a problem file holds the whole problem"):
        deployment = Deployment("costs.json", corrected_by=str(tmp_path / "measured.json"))
        solve(str(tmp_path / "s.json"), write(tmp_path), deployment=deployment, solver="greedy")


def test_a_heuristic_that_finds_nothing_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="found no choice within all limits"):
        solve(str(tmp_path / "s.json"), write(tmp_path, budgets=[{"cost": "size", "max": -1}]), solver="greedy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": [[choice("full", float("nan"), 4.0)]]},
            r"given.json: problem.layers\[0\]\[0\].score: .* nan",
        ),
        ({"layers": [[choice("full", 0.0, -4.0)]]}, r"costs\['size'\]: expected a finite number, 0 or more, got -4.0"),
        (
            {"layers": [[*LAYER, {"name": "x", "score": 1}]]},
            "all choices need the same costs; this one differs in: size",
        ),
    ],
)
def test_bad_problems_are_one_line(tmp_path: Path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        solve(str(tmp_path / "solution.json"), write(tmp_path, **changes), solver="greedy")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["given.json"]


def test_bad_calls_are_one_line(tmp_path: Path):
    out, problem = str(tmp_path / "solution.json"), write(tmp_path)
    with pytest.raises(UserError, match=r"unknown solver 'greddy'\. Did you mean 'greedy'"):
        solve(out, problem, solver="greddy")
    with pytest.raises(UserError, match="a problem file holds the whole problem"):
        solve(out, problem, deployment=Deployment("costs.json", (Target("size", max=1.0),)), solver="greedy")
    rules = (Rules(first_attention=False), Rules(counts=(Count("noop"),)), Rules(ffn=("noop",)))
    for more in (
        *({"solutions": each} for each in (Solutions(0), Solutions(1, 0.0))),
        *({"rules": each} for each in rules),
    ):
        with pytest.raises(UserError, match="a problem file holds the whole problem"):
            solve(out, problem, solver="greedy", **more)
    assert solve(out, problem, rules=Rules(["*"]), deployment=Deployment(targets=[]), solver="greedy").is_file()
    with pytest.raises(UserError, match=r"all of library, scores and deployment\.costs"):
        solve(out, library="lib", solver="greedy")
    with pytest.raises(UserError, match="there is no such file; expected a problem"):
        solve(out, str(tmp_path / "absent.json"), solver="greedy")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (Sweep("sise", (4.0,)), "unknown cost 'sise'"),
        (Sweep("size", (4.0, float("nan"))), "frontier: expected a finite number, got nan"),
        (Sweep("size", (0.5,), of_parent=True), "frontier: 'size' cannot be of_parent"),
    ],
)
def test_a_bad_frontier_is_told_before_anything_is_solved(tmp_path: Path, sweep, message, monkeypatch):
    monkeypatch.setattr(Greedy, "solve_one", lambda *_: pytest.fail("solved"))
    with pytest.raises(UserError, match=message):
        solve(str(tmp_path / "solution.json"), write(tmp_path), solver="greedy", frontier=sweep)


def test_without_the_plugin_the_way_to_it_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(registry, "_plugins", lambda kind: [])
    with pytest.raises(UserError, match="pip install -e plugins/lnlit-highs"):
        solve(str(tmp_path / "solution.json"), write(tmp_path))
