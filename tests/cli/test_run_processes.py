"""`lnlit run` under torchrun: one process writes the record, and each stage runs on the processes that it is for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import warm

from lnlit.cli import processes
from lnlit.cli.pipeline import Stage
from lnlit.cli.processes import Processes
from lnlit.errors import UserError
from lnlit.testing.tiny import tiny_folder, tiny_spec
from lnlit.testing.tiny_library import tiny_library

FIT = """\
trainer:
  max_steps: 2
  accelerator: cpu
  strategy: ddp
  devices: {devices}
  default_root_dir: runs/fit
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
model:
  class_path: SFT
  init_args: {{model: model, optimizer: {{learning_rate: 0.001}}}}
data:
  class_path: ChatData
  init_args:
    tokenizer: model
    train: {{class_path: jsonl, init_args: {{paths: rows.jsonl}}}}
    sequence_length: 64
    micro_batch_size: 2
"""
SCORE = """\
stage: score
model: model
library: library
data: {source: {class_path: jsonl, init_args: {paths: text.jsonl}}, rows: 2, length: 16}
out: scores.jsonl
dtype: float32
"""
#: Says which processes ran what. `guarded` still starts each stage.
_RANK = """
import os, sys
from pathlib import Path
from lnlit.cli import processes
from lnlit.cli.main import main
guarded, rank = processes.guarded, os.environ["RANK"]
sys.executable = {python!r}

def noted(command, lock, environment=None):
    stage = command[command.index("--config") + 1]
    world = (environment or os.environ).get("WORLD_SIZE", "-")
    with open("ran.txt", "a") as file:
        file.write(f"{{Path(stage).stem}} on {{rank}} of {{world}}\\n")
    return guarded(command, lock, environment)

processes.guarded = noted
code = main(["run", "mini"])
Path(f"code-{{rank}}.txt").write_text(str(code))
"""


@pytest.fixture
def pipeline(tmp_path, monkeypatch, warm_python) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model", tiny_spec())
    tiny_library(tmp_path / "library", tmp_path / "model", tiny_spec())
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"answer {n}"}]}
        for n in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.jsonl").write_text('{"text": "as many words as are needed"}\n' * 4)
    choices = [{"name": name, "score": 0, "costs": {"memory_mib": 1}} for name in "ab"]
    (tmp_path / "problem.json").write_text(
        json.dumps({"layers": [choices] * 2, "budgets": [{"cost": "memory_mib", "max": 9}]})
    )
    folder = tmp_path / "mini"
    folder.mkdir()
    (folder / "1_solve.yaml").write_text("stage: solve\nproblem: problem.json\nsolver: greedy\nout: solved.json\n")
    (folder / "2_score.yaml").write_text(SCORE)
    (folder / "3_fit.yaml").write_text(FIT.format(devices=2))
    return tmp_path


def ran(folder: Path) -> list[str]:
    script = folder / "rank.py"
    script.write_text(_RANK.format(python=sys.executable))  # in which stages are forked
    (folder / "ran.txt").write_text("")
    warm.torchrun(2, script, cwd=folder, timeout=240)
    return sorted((folder / "ran.txt").read_text().splitlines())


def codes(folder: Path) -> list[str]:
    return [(folder / f"code-{rank}.txt").read_text() for rank in (0, 1)]


def test_each_stage_runs_where_it_belongs_and_once(pipeline):
    assert ran(pipeline) == [
        "1_solve on 0 of -",
        "2_score on 0 of 2",
        "2_score on 1 of 2",
        "3_fit on 0 of 2",
        "3_fit on 1 of 2",
    ]
    assert codes(pipeline) == ["0", "0"]
    record = json.loads((pipeline / "runs" / "mini.stages.json").read_text())
    assert all("seconds" in record[stage] for stage in ("1_solve", "2_score", "3_fit"))
    assert [file.name for file in pipeline.glob("scores*")] == ["scores.jsonl"]
    assert len(list((pipeline / "runs" / "fit" / "checkpoints").iterdir())) > 0
    assert ran(pipeline) == []  # all is finished


def test_a_stage_that_fails_ends_all_with_its_code(pipeline):
    (pipeline / "problem.json").write_text(json.dumps({"layers": []}))
    assert ran(pipeline) == ["1_solve on 0 of -"]
    assert codes(pipeline) == ["2", "2"]


@pytest.fixture
def two_nodes(tmp_path) -> Stage:
    (tmp_path / "1_fit.yaml").write_text(FIT.format(devices="8\n  num_nodes: 2"))
    return Stage(tmp_path / "1_fit.yaml")


@pytest.mark.parametrize(("started", "on_each"), [(1, 1), (8, 8), (32, 8)])
def test_a_fit_on_other_nodes_than_were_started_is_refused(two_nodes, monkeypatch, started, on_each):
    monkeypatch.setenv("WORLD_SIZE", str(started))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_each))
    with pytest.raises(
        UserError, match=r"num_nodes is 2, trainer.devices 8, .* torchrun --nnodes 2 --nproc_per_node 8"
    ):
        Processes().check(two_nodes)


def test_a_fit_on_the_nodes_that_were_started_is_not(two_nodes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")
    Processes().check(two_nodes)


def test_what_torchrun_says_is_kept_from_a_stage_that_is_alone():
    environment = {"RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x", "MASTER_PORT": "1", "PATH": "/bin"}
    assert processes._without_torchrun(environment) == {"PATH": "/bin"}
