"""`lnlit search`: stages by name, their arguments from YAML and options."""

import json
import subprocess
import sys

import pytest

from lnlit.cli.stage_commands import SEARCH


def problem(path, limit=6):
    choices = [
        {"name": n, "score": s, "costs": {"memory_mib": c}} for n, s, c in (("a", 0, 4), ("b", 1, 2), ("c", 3, 1))
    ]
    data = {"layers": [choices] * 3, "objective": "minimize", "budgets": [{"cost": "memory_mib", "max": limit}]}
    path.write_text(json.dumps(data))
    return path


def solved(path):
    return json.loads(path.read_text())["solutions"][0]


def test_a_stage_takes_yaml_and_options_and_prints_what_it_wrote(lnlit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem(tmp_path / "problem.json")
    (tmp_path / "solve.yaml").write_text("stage: solve\nproblem: problem.json\nsolver: greedy\nout: first.json\n")
    code, out, err = lnlit("search", "solve", "--config", "solve.yaml", "--out", "second.json")
    assert code == 0, err
    assert out.strip() == "second.json"
    assert solved(tmp_path / "second.json")["costs"]["memory_mib"] <= 6
    assert not (tmp_path / "first.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["slove"], "did you mean 'solve'"),
        (["solve", "--config", "nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        (["solve", "--problem", "problem.json", "--sovler", "greedy", "--out", "o.json"], "did you mean 'solver'"),
        (["solve", "--problem", "problem.json", "--solver", "gready", "--out", "o.json"], "did you mean 'greedy'"),
        (["solve", "--problem", "gone.json", "--solver", "greedy", "--out", "o.json"], "gone.json"),
        (["score", "--config", "solve.yaml"], "stage"),
    ],
    ids=["stage", "file", "key", "solver", "missing", "other-stage"],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, says, lnlit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem(tmp_path / "problem.json")
    (tmp_path / "solve.yaml").write_text("stage: solve\nproblem: problem.json\nsolver: greedy\nout: first.json\n")
    code, _, err = lnlit("search", *arguments)
    assert code == 2
    assert says.lower() in err.lower() and err.count("\n") == 1
    assert not (tmp_path / "o.json").exists()


def test_help_lists_every_stage_and_each_stage_explains_itself(lnlit):
    code, out, _ = lnlit("search", "--help")
    assert code == 0 and all(stage in out for stage in SEARCH.stages)
    for stage in SEARCH.stages:
        code, out, err = lnlit("search", stage, "--help")
        assert code == 0 and "--out" in out, err


def test_a_stage_that_needs_no_model_starts_without_torch_and_lightning(tmp_path):
    problem(tmp_path / "p.json")
    solve = "['search', 'solve', '--problem', 'p.json', '--solver', 'greedy', '--out', 's.json']"
    probe = f"import sys; from lnlit.cli.main import main; assert main({solve}) == 0; print('imported:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not {"torch", "lightning"} & set(done.stdout.rpartition("imported:")[2].split())
