"""A place that cannot be written is told before the work, in every stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.files import check_output
from lnlit.search.baselines import Greedy


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    steps = [{"name": name, "score": s, "costs": {"size": c}} for name, s, c in (("a", 0, 3), ("b", 1, 1))]
    (tmp_path / "p.json").write_text(json.dumps({"layers": [steps] * 4, "budgets": [{"cost": "size", "max": 9}]}))
    return tmp_path / "p.json"


def test_an_output_that_is_a_folder_is_told_before_solving(problem, lnlit, tmp_path, monkeypatch):
    monkeypatch.setattr(Greedy, "solve_one", lambda *_: pytest.fail("solved"))
    (tmp_path / "dir").mkdir()
    code, _, err = lnlit("search", "solve", "--problem", problem, "--solver", "greedy", "--out", "dir")
    assert (
        code == 2
        and err.startswith("error: out: dir is a folder; expected the name of a file")
        and err.count("\n") == 1
    )
    (tmp_path / "s.problem.json").mkdir()
    code, _, err = lnlit("search", "solve", "--problem", problem, "--solver", "greedy", "--out", "s.json")
    assert code == 2 and "s.problem.json is a folder" in err
    code, _, err = lnlit("search", "solve", "--problem", problem, "--solver", "greedy", "--out", problem)
    assert code == 2 and "is read by this very command" in err
    code, _, err = lnlit("search", "solve", "--problem", problem, "--solver", "greedy", "--out", "p.json/s.json")
    assert code == 2 and "p.json, which is a file" in err


@pytest.mark.parametrize(
    "command",
    [
        "search library --model m --data.source jsonl --data.source.paths p.json --data.rows 1 --data.length 8 "
        "--out p.json",
        "search score --model m --library l --data.source jsonl --data.source.paths p.json --data.rows 1 "
        "--data.length 8 --out dir",
        'search measure --library l --workloads [{"batch_size":1,"prompt_tokens":1,"new_tokens":1}] --out dir',
        "search verify --costs c.json --models [m] --out dir",
        "search report --solution s.json --out p.json",
        "rollout curriculum --prompts jsonl --prompts.paths p.json --rollouts 1 --prompts_per_rollout 1 --out dir",
    ],
)
def test_every_stage_looks_at_its_output_first(problem, lnlit, tmp_path, command):
    """None of what these commands read is there: the output is looked at before it."""
    (tmp_path / "dir").mkdir()
    code, _, err = lnlit(*command.split())
    assert code == 2 and err.startswith("error: out: ") and ("is a folder" in err or "is a file" in err), err


def test_a_result_of_many_rounds_is_refused_before_the_first(tmp_path):
    from lnlit.journal import Journal

    with pytest.raises(UserError, match="is a folder"):
        Journal.beside(tmp_path, {}, "rows")
    assert not list(tmp_path.iterdir())


def test_an_input_under_another_name_is_an_input(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="is read by this very command"):
        check_output(tmp_path / "b", inputs=[None, str(tmp_path / "a")])
    assert check_output(tmp_path / "new" / "c", inputs=[str(tmp_path / "a")]) == tmp_path / "new" / "c"
