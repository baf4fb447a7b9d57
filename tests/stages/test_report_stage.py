"""`lnlit search report` on what `lnlit search solve` really writes."""

from __future__ import annotations

import json

import pytest

from lnlit.errors import UserError
from lnlit.interfaces.problem import Problem
from lnlit.search.targets import Sweep
from lnlit.stages.report import report
from lnlit.stages.solve import solve

NAMES = {"kv2+i48": (0.0, 40.0), "kv1+i48": (0.1, 30.0), "noop+i24": (0.3, 12.0), "noop+noop": (1.0, 0.0)}


@pytest.fixture(scope="module")
def solution(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    layers = [
        [{"name": n, "score": s * (1 + layer), "costs": {"memory_mib": c}} for n, (s, c) in NAMES.items()]
        for layer in range(5)
    ]
    asked = {"layers": layers, "budgets": [{"cost": "memory_mib", "max": 120.0}], "base_costs": {"memory_mib": 20.0}}
    (folder / "asked.json").write_text(json.dumps(asked))
    sweep = Sweep("memory_mib", (100.0, 120.0, 160.0))
    out = str(folder / "solution.json")
    return solve(out, problem=str(folder / "asked.json"), solver="ratio_greedy", frontier=sweep)


def test_the_folder_holds_a_page_and_its_pictures(solution, tmp_path):
    out = report(str(solution), str(tmp_path / "report"))
    assert {file.name for file in out.iterdir()} == {
        "report.html",
        "architecture.png",
        "frontier.png",
        "budgets.png",
        "scores.png",
    }
    html = (out / "report.html").read_text()
    for named in ("Puzzle&#39;s greedy", "uniform", "random, best of 20", "random, mean of 20", "at most 120"):
        assert named in html, named
    assert html.count(">greedy by ratio</text>") == 1 and ">greedy by ratio</td>" not in html  # no baseline of its own
    assert "proven" not in html.lower().partition("<body>")[2]  # a heuristic proves nothing, and the page says nothing


def test_measured_costs_add_a_picture_and_a_report_replaces_a_report(solution, tmp_path):
    out = report(str(solution), str(tmp_path / "report"))
    checked = {"models": [{"name": "child", "predicted": {"memory_mib": 100}, "measured": {"memory_mib": 120}}]}
    (tmp_path / "measured.json").write_text(json.dumps(checked))
    assert report(str(solution), str(out), measured=str(tmp_path / "measured.json")) == out
    assert (out / "measured.png").is_file() and "-16.7%" in (out / "report.html").read_text()


def test_no_other_folder_is_replaced(solution, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(UserError, match="exists and is not a report"):
        report(str(solution), str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "letter.txt").is_file()


def test_a_missing_problem_or_solution_is_one_line(solution, tmp_path):
    alone = tmp_path / "solution.json"
    alone.write_text(solution.read_text())
    with pytest.raises(UserError, match=r"problem.json: there is no such file; expected a problem"):
        report(str(alone), str(tmp_path / "report"))
    with pytest.raises(UserError, match="expected a solution"):
        report(str(tmp_path / "nothing.json"), str(tmp_path / "report"))
    wrong = json.loads(solution.read_text())
    wrong["baselines"] = {"greedy": 3}
    alone.write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=r"baselines"):
        report(str(alone), str(tmp_path / "report"), problem=str(solution.with_name("problem.json")))
    assert not (tmp_path / "report").exists()


def test_the_problem_beside_it_is_the_one_that_was_solved(solution):
    assert len(Problem.from_json(json.loads(solution.with_name("problem.json").read_text())).layers) == 5
