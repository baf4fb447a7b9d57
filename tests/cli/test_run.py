"""`lnlit run`: numbered stages in order, each a process; finished ones skipped, wherever the last run stopped."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import warm

from lnlit.checkpoint.hf import SPEC_FILE
from lnlit.cli.ledger import COME_LAST
from lnlit.cli.main import main
from lnlit.cli.pipeline import stages_of
from lnlit.errors import UserError
from lnlit.search.library import INDEX
from lnlit.testing.tiny import tiny_folder, tiny_spec
from lnlit.testing.tiny_library import tiny_library

pytestmark = pytest.mark.usefixtures("warm_python")
#: `lnlit run mini`, as the process of a test whose own Python is another.
RUN = "import sys\nfrom lnlit.cli.main import main\nsys.executable = {!r}\nsys.exit(main(['run', 'mini']))\n"


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """`run("mini")` is `lnlit run mini` in `tmp_path`: (exit code, standard error)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        code = main(["run", *arguments])
        return code, capfd.readouterr().err

    return command


def problem(path: Path, most: float = 6) -> None:
    choices = [
        {"name": n, "score": s, "costs": {"memory_mib": c}} for n, s, c in (("a", 0, 4), ("b", 1, 2), ("c", 3, 1))
    ]
    path.write_text(json.dumps({"layers": [choices] * 3, "budgets": [{"cost": "memory_mib", "max": most}]}))


@pytest.fixture
def pipeline(tmp_path) -> Path:
    problem(tmp_path / "problem.json")
    folder = tmp_path / "mini"
    folder.mkdir()
    for name in ("1_first", "2_second", "10_last"):
        (folder / f"{name}.yaml").write_text(f"stage: solve\nproblem: problem.json\nsolver: greedy\nout: {name}.json\n")
    return folder


def test_stages_run_in_order_and_finished_ones_are_skipped(pipeline, run, tmp_path):
    (pipeline / "2_second.yaml").write_text("stage: solve\nproblem: later.json\nsolver: greedy\nout: 2_second.json\n")
    problem(tmp_path / "later.json", most=0)
    code, err = run("mini")
    assert code == 2 and err.splitlines()[-1].startswith("error: solve: found no choice")
    assert (tmp_path / "1_first.json").exists() and not (tmp_path / "10_last.json").exists()
    first = (tmp_path / "1_first.json").stat().st_mtime_ns
    problem(tmp_path / "later.json")
    code, err = run("mini")
    assert code == 0 and "1_first.yaml: finished" in err
    assert (tmp_path / "10_last.json").exists()
    assert (tmp_path / "1_first.json").stat().st_mtime_ns == first


def test_a_stage_that_changed_after_it_ran_is_refused(pipeline, run):
    assert run("mini")[0] == 0
    with (pipeline / "1_first.yaml").open("a") as file:
        file.write("# a new remark\n")
    code, err = run("mini")
    assert code == 2 and "1_first.yaml" in err and "has changed since it ran" in err


def test_two_stages_of_one_result_are_refused_before_the_first_starts(pipeline, run, tmp_path):
    text = (pipeline / "2_second.yaml").read_text()
    (pipeline / "2_second.yaml").write_text(text.replace("2_second.json", "./sub/../1_first.json"))
    code, err = run("mini")
    said = "mini/2_second.yaml: writes ./sub/../1_first.json, as mini/1_first.yaml does. Give each a result of its own."
    assert code == 2 and err.splitlines()[-1] == f"error: {said}"
    assert not (tmp_path / "1_first.json").exists()


def test_what_is_put_aside_is_whole(pipeline, run, tmp_path):
    """A solution is read with its problem, which lies beside it."""
    assert run("mini")[0] == 0
    before = [(tmp_path / name).read_bytes() for name in ("1_first.json", "1_first.problem.json")]
    problem(tmp_path / "problem.json", most=5)
    code, err = run("mini", "--again", "1", "--until", "1")
    assert code == 0 and "1_first.problem.json is put aside as" in err
    assert [(tmp_path / name).read_bytes() for name in ("1_first.json.1", "1_first.problem.json.1")] == before
    assert (tmp_path / "1_first.problem.json").read_bytes() != before[1]


def test_two_folders_of_one_name_do_not_share_a_record(pipeline, run, tmp_path):
    assert run("mini")[0] == 0
    (tmp_path / "other").mkdir()
    pipeline.rename(tmp_path / "other" / "mini")
    code, err = run("other/mini")
    assert code == 2 and "is the record of another folder of this name" in err and err.count("\n") == 1
    assert run("other/mini", "--runs", "other/runs")[0] == 0
    (tmp_path / "moved").mkdir()
    (tmp_path / "other").rename(tmp_path / "moved" / "other")  # record and folder together
    code, err = run("moved/other/mini", "--runs", "moved/other/runs")
    assert code == 0 and err.count(": finished") == 3


def test_a_record_without_a_folder_is_gone_on_with(pipeline, run, tmp_path):
    assert run("mini")[0] == 0
    ledger = tmp_path / "runs" / "mini.stages.json"
    stages = json.loads(ledger.read_text())
    del stages["folder"]
    ledger.write_text(json.dumps(stages))
    code, err = run("mini")
    assert code == 0 and err.count(": finished") == 3


def test_what_a_stage_wrote_before_a_kill_counts_as_finished(run, tmp_path):
    """The kill comes after the model folder and before the record of it; a folder from elsewhere stays refused."""
    tiny_folder(tmp_path / "parent", tiny_spec())
    library = tiny_library(tmp_path / "library", tmp_path / "parent", tiny_spec(), pair=False)
    own = [str(layer.parent) for layer in library.layers]
    solution = {"status": "optimal", "solutions": [{"choice": own, "score": 0.0, "costs": {}}]}
    (tmp_path / "solution.json").write_text(json.dumps(solution))
    (tmp_path / "mini").mkdir()
    recipe = "stage: realize\nsolution: solution.json\nlibrary: library\nout: child\n"
    (tmp_path / "mini" / "1_realize.yaml").write_text(recipe)
    shutil.copytree(tmp_path / "parent", tmp_path / "child")
    code, err = run("mini")
    assert code == 2 and "exists already" in err
    assert run("mini")[0] == 2  # it was there before the stage was
    shutil.rmtree(tmp_path / "child")
    assert run("mini")[0] == 0
    ledger = tmp_path / "runs" / "mini.stages.json"
    stages = json.loads(ledger.read_text())
    del stages["1_realize"]["seconds"]  # as it was while the stage ran
    ledger.write_text(json.dumps(stages))
    before = (tmp_path / "child" / SPEC_FILE).stat().st_mtime_ns
    code, err = run("mini")
    assert code == 0 and "finished, child is there" in err
    assert (tmp_path / "child" / SPEC_FILE).stat().st_mtime_ns == before
    assert set(COME_LAST) == {INDEX, SPEC_FILE}


def test_a_fit_of_two_processes_is_started_as_such(config, run, tmp_path):
    """Lightning starts the second with the first one's command line, which must not be that of the pipeline."""
    two = config(("accelerator: cpu", "accelerator: cpu\n  devices: 2\n  strategy: ddp"))
    (tmp_path / "mini").mkdir()
    two.rename(tmp_path / "mini" / "1_fit.yaml")
    code, err = run("mini")
    assert code == 0 and "GLOBAL_RANK: 1, MEMBER: 2/2" in err, err
    assert err.count("1_fit.yaml: lnlit fit") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_stage_which_saves(config, tmp_path, number, code):
    endless = config(("  enable_checkpointing: false\n", ""), ("max_steps: 2", "max_steps: 1000000"))
    (tmp_path / "mini").mkdir()
    endless.rename(tmp_path / "mini" / "1_fit.yaml")
    problem(tmp_path / "some.json")
    (tmp_path / "mini" / "2_never.yaml").write_text("stage: solve\nproblem: some.json\nout: never.json\n")
    (tmp_path / "run.py").write_text(RUN.format(sys.executable))
    process = warm.Process(tmp_path / "run.py", cwd=tmp_path)
    deadline = time.monotonic() + 90
    checkpoints = tmp_path / "runs" / "checkpoints"
    while not list(checkpoints.glob("*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=90)
    assert process.returncode == code, err
    assert "saved a checkpoint at step" in err and "Traceback" not in err and "2_never" not in err
    assert "seconds" not in json.loads((tmp_path / "runs" / "mini.stages.json").read_text())["1_fit"]


@pytest.mark.parametrize(
    ("names", "says"),
    [((), "nothing to run"), (("1_a", "1_b"), "the same number"), (("a", "b"), "nothing to run")],
)
def test_a_folder_that_is_no_pipeline_is_refused(names, says, tmp_path):
    for name in names:
        (tmp_path / f"{name}.yaml").write_text("stage: solve\n")
    with pytest.raises(UserError, match=says):
        stages_of(tmp_path)


def test_a_folder_of_pipelines_is_told_from_a_pipeline(tmp_path):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "1_a.yaml").write_text("stage: solve\n")
    with pytest.raises(UserError, match=r"nothing to run. Did you mean .*/mini\?$"):
        stages_of(tmp_path)


def test_a_stage_that_would_be_passed_over_for_its_files_name_is_refused(tmp_path):
    (tmp_path / "1_a.yaml").write_text("stage: solve\n")
    (tmp_path / "common.yml").write_text("rows: 2\n")  # to include
    assert len(stages_of(tmp_path)) == 1
    (tmp_path / "2_b.yml").write_text("stage: solve\n")
    with pytest.raises(UserError, match=r"2_b.yml: a stage's file ends with .yaml. Rename it"):
        stages_of(tmp_path)


@pytest.mark.parametrize("record", ['{"1_first": 5}', '{"digests": []}', '{"folder": null}'])
def test_a_damaged_record_is_told_of_in_one_line(record, pipeline, run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mini.stages.json").write_text(record)
    code, err = run("mini")
    assert code == 2 and "mini.stages.json: " in err and "Delete this entry" in err and err.count("\n") == 1
