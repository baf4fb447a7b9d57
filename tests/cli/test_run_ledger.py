"""What `lnlit run` takes a stage to be: its file, what that includes and names, and what it wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from lnlit.cli import ledger as ledgers
from lnlit.cli import made_by as makers
from lnlit.cli.ledger import Ledger
from lnlit.cli.made_by import Digests
from lnlit.cli.main import main
from lnlit.cli.pipeline import Stage, stages_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("warm_python")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """`run(...)` is `lnlit run mini ...` in `tmp_path`: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["run", "mini", *arguments])
        return code, *capfd.readouterr()

    return command


def problem(path: Path, most: float = 6) -> None:
    choices = [{"name": n, "score": s, "costs": {"mib": c}} for n, s, c in (("a", 0, 4), ("b", 1, 2), ("c", 3, 1))]
    path.write_text(json.dumps({"layers": [choices] * 3, "budgets": [{"cost": "mib", "max": most}]}))


def write(folder: Path, **stages: str) -> Path:
    """mini/NAME.yaml of each, every one a quick solve."""
    (folder / "mini").mkdir(exist_ok=True)
    for name, text in stages.items():
        (folder / "mini" / f"s{name}.yaml".removeprefix("s")).write_text(f"stage: solve\nsolver: greedy\n{text}\n")
    return folder / "mini"


@pytest.fixture
def chain(tmp_path) -> Path:
    """1 reads given.json; 2 reads what 1 writes beside its solution; 3 reads given.json too."""
    problem(tmp_path / "given.json")
    return write(
        tmp_path,
        **{
            "1_first": "problem: given.json\nout: out/a.json",
            "2_second": "problem: out/a.problem.json\nout: out/b.json",
            "3_third": "problem: given.json\nout: out/c.json",
        },
    )


def test_what_a_stage_includes_and_reads_is_part_of_it(tmp_path, run):
    problem(tmp_path / "given.json")
    (tmp_path / "sweep.yaml").write_text("{cost: mib, values: [9.0, 6.0]}")
    write(tmp_path, **{"1_solve": "problem: given.json\nfrontier: ../sweep.yaml\nout: out/a.json"})
    assert run()[0] == 0
    before = (tmp_path / "out" / "a.json").read_bytes()
    (tmp_path / "sweep.yaml").write_text("{cost: mib, values: [9.0, 7.0]}")
    code, _, err = run()
    assert code == 2 and "sweep.yaml" in err and "has changed since it ran" in err and "--again 1" in err
    (tmp_path / "sweep.yaml").write_text("{cost: mib, values: [9.0, 6.0]}")
    assert "finished" in run()[2]
    problem(tmp_path / "given.json", most=5)
    code, _, err = run()
    assert code == 2 and "has changed since it ran: given.json." in err and err.count("\n") == 1
    assert (tmp_path / "out" / "a.json").read_bytes() == before
    problem(tmp_path / "given.json")
    os.utime(tmp_path / "given.json", (0, 0))  # copied or touched, not changed
    code, _, err = run()
    assert code == 0 and "finished" in err
    (tmp_path / "out" / "a.json").unlink()
    code, _, err = run()
    assert code == 0 and "out/a.json is gone; runs again" in err and (tmp_path / "out" / "a.json").is_file()


def test_stages_can_be_chosen_shown_and_run_again(chain, run, tmp_path):
    code, out, _ = run("--dry-run")
    assert code == 0 and out.count("runs `lnlit search solve`: not started") == 3 and not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()
    assert run("--until", "1")[0] == 0
    assert (tmp_path / "out" / "a.json").is_file() and not (tmp_path / "out" / "b.json").exists()
    assert run("--only", "3_third.yaml")[0] == 0 and not (tmp_path / "out" / "b.json").exists()
    code, out, _ = run("--status")
    states = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert states["2_second"] == "not started" and all(
        states[n].startswith("finished, ") for n in ("1_first", "3_third")
    )
    assert run("--from", "2")[0] == 0
    first = (tmp_path / "out" / "a.json").read_bytes()
    third = (tmp_path / "out" / "c.json").stat().st_mtime_ns
    problem(tmp_path / "given.json", most=9)
    code, _, err = run()
    assert code == 2 and "1_first.yaml: this stage has changed since it ran: given.json" in err
    code, out, _ = run("--until", "2", "--again", "1", "--dry-run")
    assert code == 0 and out.count("to be run again") == 2
    code, _, err = run("--until", "2", "--again", "1")
    assert code == 0 and "out/a.json is put aside as out/a.json.1" in err and "b.json.1" in err
    assert (tmp_path / "out" / "a.json.1").read_bytes() == first
    assert json.loads((tmp_path / "out" / "b.json").read_text())["solutions"][0]["score"] == 2.0  # 3 with 6 MiB
    assert (tmp_path / "out" / "c.json").stat().st_mtime_ns == third
    assert run("--until", "2")[2].count(": finished") == 2
    code, _, err = run()
    assert (
        code == 2 and "3_third.yaml: this stage has changed since it ran: given.json" in err
    )  # nobody asked for that one


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--only", "4"), "no stage '4'. There are: 1_first, 2_second, 3_third"),
        (("--from", "2_secnd"), "Did you mean '2_second'?"),
        (("--from", "3", "--until", "2"), "nothing to run"),
        (("--only", "2", "--until", "3"), "--only is --from and --until in one"),
        (("--until", "1", "--again", "2"), "not among those to be run"),
    ],
)
def test_a_choice_that_is_none_is_refused(chain, run, arguments, says):
    code, _, err = run(*arguments)
    assert code == 2 and says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("problem: given.json\nout: b.json\nsolvr: greedy", "2_second.yaml:5: configuration: unknown key 'solvr'"),
        ("problem: given.json\nout: b.json\ntime_limit_s: soon", "2_second.yaml:5: time_limit_s: expected float"),
        (
            "problem: given.json\nout: b.json\nfrontier: ../sweep.yaml",
            "frontier: mini/../sweep.yaml: unknown key 'vlues'",
        ),
        ("problem: gven.json\nout: b.json", "2_second.yaml:3: problem: there is no 'gven.json'"),
        ("problem: out/a.problm.json\nout: b.json", "Did you mean 'out/a.problem.json'?"),
        ("problem: out/c.problem.json\nout: b.json", "3_third.yaml writes it, which comes later"),
    ],
)
def test_a_mistake_in_a_later_file_is_told_before_anything_runs(chain, run, tmp_path, second, says):
    (tmp_path / "sweep.yaml").write_text("{cost: mib, vlues: [9.0]}")
    write(tmp_path, **{"2_second": second})
    code, _, err = run()
    assert code == 2 and says in err and "lnlit search solve" not in err
    assert not (tmp_path / "out").exists() and "Traceback" not in err


def test_fits_are_checked_with_the_rest(config, run, tmp_path):
    """Their keys at any depth, and that no two go on from each other's checkpoints."""
    problem(tmp_path / "given.json")
    write(tmp_path, **{"1_first": "problem: given.json\nout: out/a.json"})
    config(("learning_rate", "learning_rat")).rename(tmp_path / "mini" / "2_fit.yaml")
    code, _, err = run()
    assert code == 2 and "unknown key 'learning_rat'" in err and not (tmp_path / "out").exists()
    config().rename(tmp_path / "mini" / "2_fit.yaml")
    config().rename(tmp_path / "mini" / "3_fit.yaml")
    code, _, err = run()
    assert code == 2 and "default_root_dir runs is that of 2_fit.yaml too" in err


@pytest.mark.parametrize(
    "first",
    [
        ("logger: false", "logger: false"),
        ("logger: false", "default_root_dir: runs/1\n  logger: {class_path: CSVLogger, init_args: {save_dir: runs}}"),
    ],
)
def test_what_fits_and_loggers_write_into_the_folder_of_all_is_no_model(config, run, tmp_path, tiny_model, first):
    (tmp_path / "mini").mkdir()
    config(first).rename(tmp_path / "mini" / "1_fit.yaml")
    second = config(
        ("logger: false", "default_root_dir: runs/2"), (f"    model: {tiny_model}", "    model: runs/healed")
    )
    second.rename(tmp_path / "mini" / "2_fit.yaml")
    code, _, err = run()
    assert code == 2 and "there is no 'runs/healed', and no stage before writes it" in err


def test_a_pipeline_that_is_being_run_says_who_runs_it(chain, run, tmp_path):
    with Ledger(Path("runs"), Path("mini")).locked():
        code, _, err = run()
        assert code == 2 and f"is being run already, by process {os.getpid()} on " in err and err.count("\n") == 1
        code, out, _ = run("--status")
        assert code == 0 and out.startswith(f"running: process {os.getpid()}")
    code, out, _ = run("--status")
    assert code == 0 and "running" not in out


def test_a_record_of_an_older_lnlit_is_refused_until_somebody_says_what_holds(chain, run, tmp_path):
    """It says nothing of what the stages read."""
    assert run()[0] == 0
    record = tmp_path / "runs" / "mini.stages.json"
    stages = json.loads(record.read_text())
    record.write_text(json.dumps({**stages, "1_first": {"sha256": "0", "seconds": 5.0}}))
    code, _, err = run()
    assert code == 2 and "1_first.yaml: this stage has changed since it ran: the form of its record" in err
    assert "--again 1" in err and "--from 2" in err and (tmp_path / "out" / "a.json").is_file()
    assert run("--from", "2")[2].count(": finished") == 2


def test_other_versions_and_code_are_told(chain, run, monkeypatch):
    assert run("--until", "1")[0] == 0
    now = {**makers.made_with(), "torch": "9.9", "code": "other"}
    monkeypatch.setattr(makers, "made_with", lambda: now)
    code, _, err = run("--until", "1")
    assert code == 0 and "finished" in err and "made with other code of lnlit and torch " in err and "(now 9.9)" in err


def test_a_change_is_seen_by_content_whatever_the_times_say(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    one, two = tmp_path / "one", tmp_path / "sub" / "two"
    one.write_text("aaaa")
    two.write_text("bbbb")
    known: dict = {}

    def now(*without: Path) -> str:
        digests = Digests(known)
        found = digests.of([tmp_path], without)
        known.update(digests.used)
        return found

    first = now()
    assert first == now() and not known  # too fresh to be known by its times
    monkeypatch.setattr(makers, "_SETTLED_S", -1e9)
    assert first == now() and len(known) == 2
    about = one.stat()
    one.write_text("cccc")
    os.utime(one, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert now() != first
    one.write_text("aaaa")
    assert now() == first
    (tmp_path / "sub" / "three").write_text("")
    assert now() != first and now(tmp_path / "sub" / "three") == first
    two.unlink()
    assert now(tmp_path / "sub" / "three") != first


def test_what_a_stage_writes_is_not_its_input(tmp_path, monkeypatch):
    """A cache that several fill, a run's own folder, a model that is replaced in place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    recipe = {
        "model": {"class_path": "SFT", "init_args": {"model": "m/parent", "run": "train"}},
        "data": {"init_args": {"cache": "m/tokens", "train": {"init_args": {"paths": "m/*.jsonl"}}}},
        "trainer": {"default_root_dir": "m/run", "callbacks": [{"init_args": {"out": "m/parent"}}]},
    }
    (tmp_path / "mini" / "1_fit.yaml").write_text(yaml.safe_dump(recipe))
    for folder in ("m/parent", "m/tokens", "m/run", "train"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x").write_text("1")
    (tmp_path / "m" / "a.jsonl").write_text("1")
    (stage,) = stages_of(Path("mini"))
    assert set(makers.made_by(stage, [], Digests({}))["inputs"]) == {"m/*.jsonl", "train"}
    assert stage.outs == ["m/parent"] and set(stage.writes) == {"m/parent", "m/tokens", "m/run"}


def test_a_dotted_key_is_read_as_the_keys_that_it_stands_for(tmp_path):
    (tmp_path / "1_fit.yaml").write_text(
        "trainer.default_root_dir: m/run\ntrainer.callbacks+: {init_args.out: m/parent}\n"
    )
    fit = Stage(tmp_path / "1_fit.yaml")
    assert (fit.root, fit.outs) == ("m/run", ["m/parent"]) and set(fit.writes) == {"m/run", "m/parent"}


def test_the_guide_runs_what_it_says():
    """Stages 1 to 4 and no more, of files that are there."""
    text = (ROOT / "docs" / "guide" / "search.md").read_text()
    assert "lnlit run yaml/mini --until 4b " in text and "lnlit run yaml/mini  " not in text
    names = [stage.number for stage in stages_of(ROOT / "yaml" / "mini")]
    assert names.index("4b") == len([name for name in names if name[0] in "1234"]) - 1


def test_the_files_that_come_last_are_known():
    assert ledgers.COME_LAST == ("library.json", "lnlit.json")


def test_a_trained_model_that_is_gone_is_exported_or_trained_anew_as_somebody_says(tmp_path, run):
    """Going on from a checkpoint at the end of the training would write nothing."""
    (tmp_path / "mini").mkdir()
    recipe = {"trainer": {"default_root_dir": "run", "callbacks": [{"init_args": {"out": "model"}}]}}
    (tmp_path / "mini" / "1_fit.yaml").write_text(yaml.safe_dump(recipe))
    for file in ("model/lnlit.json", "model/model.safetensors", "run/checkpoints/step-4.ckpt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (stage,) = stages_of(Path("mini"))
    ledger = Ledger(Path("runs"), Path("mini"))
    ledger.note(stage, ledger.verdict(stage, [stage]).made_by, 1.0)
    assert "finished, 1 s" in run()[2]
    (tmp_path / "model" / "model.safetensors").unlink()
    code, _, err = run()
    assert code == 2 and "finished, but model/model.safetensors is gone" in err and "`lnlit export`" in err
    assert (tmp_path / "model" / "lnlit.json").is_file() and err.count("\n") == 1


def test_a_stage_that_ends_without_its_result_is_not_finished(chain, run, monkeypatch):
    monkeypatch.setattr("lnlit.cli.processes.guarded", lambda *_: (0, 0))
    code, _, err = run()
    assert code == 2 and "1_first.yaml: has ended, but out/a.json is not there" in err
    assert run("--status")[1].startswith("1_first   started, not finished")
