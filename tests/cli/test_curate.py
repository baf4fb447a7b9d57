"""`lnlit curate`: one YAML file, one table, one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import lnlit
from lnlit.cli.main import main
from lnlit.errors import UserError

RECIPE = """\
stage: curate
source:
  class_path: jsonl
  init_args:
    paths: rows.jsonl
    columns: {problem: prompt}
steps:
  - class_path: Columns
    init_args: {required: [answer]}
  - class_path: ExactDedup
  - class_path: MinHashDedup
    init_args: {ngram: 3}
  - class_path: Decontaminate
    init_args:
      benchmarks:
        bench:
          class_path: jsonl
          init_args: {paths: bench.jsonl}
out: out.jsonl
tasks: 2
"""


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"problem": f"What is the sum of {n} and of {n} plus one?", "answer": str(2 * n + 1)} for n in range(9)]
    rows += [rows[0], {"problem": "What is it?", "answer": ""}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": "What is the sum of 3 and of 3 plus one?"}) + "\n")
    (tmp_path / "run.yaml").write_text(RECIPE)


def test_rows_and_a_table(tmp_path, capsys):
    assert main(["curate", "--config", "run.yaml"]) == 0
    told = capsys.readouterr()
    assert told.out == "out.jsonl\n"
    lines = [line.split() for line in told.err.splitlines()[-6:]]
    assert lines == [
        ["step", "rows", "in", "rows", "out", "dropped"],
        ["Read", "12", "11", "unreadable", "1"],
        ["Columns", "11", "10", "no_answer", "1"],
        ["ExactDedup", "10", "9", "duplicate", "1"],
        ["MinHashDedup", "9", "9"],
        ["Decontaminate", "9", "8", "in_bench", "1"],
    ]
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in kept] == ["1", "3", "5", "9", "11", "13", "15", "17"]


@pytest.mark.parametrize("strict", [["--strict"], ["--strict", "true"], ["--strict=true"]])
def test_strict_names_the_first_bad_row(tmp_path, capsys, strict):
    assert main(["curate", *strict, "--config", "run.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: Read: row 11: rows.jsonl:12: not valid JSON")
    assert not (tmp_path / "out.jsonl").exists()
    (tmp_path / "rows.jsonl").write_text('{"problem": "What?"}\n')
    assert main(["curate", *strict, "--config", "run.yaml", "--out", "b.jsonl"]) == 2
    assert "Columns: row 000000000000: answer holds nothing" in capsys.readouterr().err


def test_nothing_is_a_question(capsys):
    assert main(["curate"]) == 0 and "usage: lnlit curate" in capsys.readouterr().out


def test_steps_that_ask_no_model_do_without_torch(tmp_path):
    code = "import sys; from lnlit.cli.main import main; code = main(['curate', '--config', 'run.yaml']); "
    code += "print(code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["out.jsonl", "0 False"]


def test_from_python(tmp_path):
    assert lnlit.stage("run.yaml", {"workers": 1, "out": "b.jsonl"}).read_text().count("\n") == 8
    assert lnlit.stage("run.yaml").name == "out.jsonl"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("ExactDedup", "ExactDedupe", "Did you mean 'ExactDedup'"),
        ("required: [answer]", "requires: [answer]", "Did you mean 'required'"),
        ("ngram: 3", "ngram: three", "steps[2].init_args.ngram"),
        ("class_path: ExactDedup", "class_path: os.path.join", "os.path.join"),
        ("bench.jsonl}", "nowhere.jsonl}", "no file matches 'nowhere.jsonl'"),
        ("out: out.jsonl", "executor: {class_path: Slurm}\nout: out.jsonl", "time"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, old, new, told):
    assert old in RECIPE
    (tmp_path / "run.yaml").write_text(RECIPE.replace(old, new))
    assert main(["curate", "--config", "run.yaml"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") <= 2, error
    assert not (tmp_path / "out.jsonl.work").exists()


def test_without_datatrove_the_extra_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "datatrove" or "curat" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datatrove", None)
    assert main(["curate", "--config", "run.yaml"]) == 2
    assert capsys.readouterr().err == "error: datatrove is not installed; run: pip install 'lnlit[curate]'\n"
    with pytest.raises(UserError, match="datatrove is not installed"):
        lnlit.stage("run.yaml")
