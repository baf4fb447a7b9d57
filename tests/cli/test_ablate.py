"""`lnlit ablate`: arms and seeds as runs, each once, and a table that counts every one of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import lnlit as front
import lnlit.cli.processes
from lnlit.cli.arms import Ablation, runs_of
from lnlit.cli.ledger import Ledger
from lnlit.cli.main import main
from lnlit.errors import UserError

stats = pytest.importorskip("scipy.stats")


class Stages:
    """Runs stages here instead of behind a guard. `names`: the runs that were begun; `codes`: what some end with."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.codes: dict[str, int] = {}

    def __call__(self, command: list[str], lock: int) -> tuple[int, int]:
        name = "/".join(Path(command[-3]).parts[1:-1])
        self.names.append(name)
        return (self.codes.pop(name), 0) if name in self.codes else (main(command[3:]), 0)

    def take(self) -> list[str]:
        taken, self.names = self.names, []
        return taken


@pytest.fixture
def stages(monkeypatch) -> Stages:
    found = Stages()
    monkeypatch.setattr(lnlit.cli.processes, "guarded", found)
    return found


@pytest.fixture
def ablation(config, rows_file, tmp_path) -> Callable[..., str]:
    """`ablation(key=...)` writes ablation.yaml, whose base is beside it."""
    val = f"    val: {{class_path: jsonl, init_args: {{paths: {rows_file}}}}}\n    sequence_length"
    config(("    sequence_length", val))

    def write(**settings: Any) -> str:
        arms = {"low": {}, "high": {"model.optimizer.learning_rate": "5e-2"}}
        given = {"base": "run.yaml", "arms": arms, "seeds": [0, 1], "metrics": ["val/loss"], "out": "out"}
        (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(given | settings, sort_keys=False))
        return "ablation.yaml"

    return write


def losses(arm: str) -> list[float]:
    files = sorted(Path("out", arm).glob("seed-*/1_run.results.json"))
    return [json.loads(file.read_text())["metrics"]["val/loss"] for file in files]


def test_every_run_is_made_once_and_a_changed_arm_anew(ablation, lnlit, stages, rows_file):
    stages.codes = {"high/seed-1": 1}
    code, out, err = lnlit("ablate", ablation())
    assert stages.take() == ["low/seed-0", "high/seed-0", "low/seed-1", "high/seed-1"]
    assert code == 2 and "1 of 4 runs have failed" in err and "high, seed 1: failed: exit code 1" in err
    assert "| high | 1 of 2 |" in out and "one of seeds says nothing of others | not known | 1 failed" in out

    assert lnlit("ablate", "ablation.yaml")[0] == 0 and stages.take() == ["high/seed-1"]
    data = json.loads(Path("out/ablation.json").read_text())
    found = data["metrics"]["val/loss"]["high"]["difference"]["seeds"]
    oracle = stats.ttest_rel(losses("high"), losses("low")).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((oracle.low, oracle.high))
    assert losses("low")[0] != losses("low")[1]  # a seed is another order of the rows
    run = data["runs"][1]
    assert (
        run["arm_settings"] == {"run": {"model.optimizer.learning_rate": "5e-2"}} and run["made_by"]["1_run"]["inputs"]
    )
    resolved = yaml.safe_load(Path("out/high/seed-1/1_run.yaml").read_text())
    assert (resolved["seed_everything"], resolved["data"]["init_args"]["seed"]) == (1, 1)
    assert resolved["model"]["init_args"]["optimizer"]["learning_rate"] == 0.05

    before = losses("high")
    ablation(arms={"low": {}, "high": {"model.optimizer.learning_rate": "4e-2"}})
    code, out, err = lnlit("ablate", "ablation.yaml", "--status")
    assert code == 0 and out.count("finished") == 2 and out.count("1_run: changed since it ran: its configuration") == 2
    code, out, err = lnlit("ablate", "ablation.yaml")
    assert code == 0 and stages.take() == ["high/seed-0", "high/seed-1"]
    assert err.count("changed since it ran: its configuration; anew") == 2 and "put aside as" in err
    assert losses("high") != before


def test_a_stopped_ablation_goes_on_where_it_stopped(ablation, lnlit, stages):
    stages.codes = {"high/seed-3": 143}
    code, out, _ = lnlit("ablate", ablation(seeds=[3]))
    assert code == 143 and not out and stages.take() == ["low/seed-3", "high/seed-3"]
    assert lnlit("ablate", "ablation.yaml")[0] == 0 and stages.take() == ["high/seed-3"]


def test_two_at_once_are_locked_out(ablation, lnlit, tmp_path):
    ablation()
    os.chdir(tmp_path)
    with Ledger(Path("out"), Path("out")).locked():
        code, _, err = lnlit("ablate", "ablation.yaml")
        assert code == 2 and "is being run already, by process" in err and err.count("\n") == 1
        assert lnlit("ablate", "ablation.yaml", "--status")[1].startswith("running: process")


def test_a_dry_run_writes_nothing(ablation, lnlit, tmp_path):
    code, out, _ = lnlit("ablate", ablation(), "--dry-run", "--seeds", 7)
    assert code == 0 and out.splitlines()[1] == "high, seed 7  runs: 1_run: not started"
    assert not Path("out").exists()


def test_stages_of_one_run_read_what_its_others_write(tmp_path, config, tiny_model, monkeypatch):
    """Whatever is written moves into the run's folder, and with it whatever reads that; nothing else does."""
    monkeypatch.chdir(tmp_path)
    export = "trainer:\n  callbacks: [{class_path: ExportModel, init_args: {out: runs/a/sft}}]\n"
    config(("trainer:\n", f"{export}  default_root_dir: runs/a\n"), name="1_first.yaml")
    config(("trainer:\n", "trainer:\n  default_root_dir: runs/b/second\n"), name="2_second.yaml")
    reads = {"model.model": "runs/a/sft", "data.tokenizer": "runs/a/sft_before"}
    arms = {"both": {"2": reads}, "second": {"1_first": None}}
    given = {"base": ["1_first.yaml", "2_second.yaml"], "arms": arms, "seeds": [0], "metrics": ["val/loss"], "out": "o"}
    both, second = runs_of(Ablation.of(given, "here", Path()))
    first, then = (yaml.safe_load(text) for text in both.texts.values())
    assert list(both.texts) == ["1_first.yaml", "2_second.yaml"] and list(second.texts) == ["2_second.yaml"]
    assert first["trainer"]["callbacks"][0]["init_args"]["out"] == "o/both/seed-0/a/sft"
    assert first["trainer"]["default_root_dir"] == "o/both/seed-0/a"
    assert then["model"]["init_args"]["model"] == "o/both/seed-0/a/sft"
    assert then["data"]["init_args"]["tokenizer"] == "runs/a/sft_before"
    assert then["trainer"]["default_root_dir"] == "o/both/seed-0/b/second"
    alone = yaml.safe_load(second.texts["2_second.yaml"])
    assert alone["model"]["init_args"]["model"] == str(tiny_model)
    assert alone["trainer"]["callbacks"][-1]["init_args"]["out"] == "o/second/seed-0/2_second.results.json"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"arm": {}}, "ablation.yaml: unknown key 'arm'. Did you mean 'arms'?"),
        ({"seeds": []}, "ablation.yaml: seeds: expected one or more, each once; got []"),
        ({"seeds": [0, 0]}, "each once; got [0, 0]"),
        ({"seeds": [-1]}, "ablation.yaml: seeds[0]: expected a whole number, 0 or more, got -1"),
        ({"seeds": "0, 1"}, "ablation.yaml: seeds: expected"),
        ({"seeds": [2**32]}, "seeds: expected at most 4294967295, got 4294967296"),
        ({"metrics": []}, "metrics: name one or more"),
        ({"metrics": ["val/loss", "val/loss"]}, "metrics: expected each once"),
        ({"base": "nowhere.yaml"}, "there is no file 'nowhere.yaml'"),
        ({"arms": {"one": {}}}, "expected two or more"),
        ({"arms": {"a/b": {}, "c": {}}}, "'a/b' names a folder too"),
        ({"arms": {"a": {}, "ablation.json": {}}}, "'ablation.json' names a folder too"),
        ({"arms": {"Low": {}, "low": {}}}, "'Low' and 'low' are one folder on some disks"),
        ({"arms": {"a": {}, "b": 3}}, "arms.b: expected key: value"),
        ({"arms": {"a": {}, "b": {"trainer.default_root_dir": "x"}}}, "seeds and folders are the ablation's"),
        ({"arms": {"a": {}, "b": {"model.init_args.optimizer.lr": 1}}}, "unknown key 'lr'. Allowed: betas"),
        ({"metrics": ["1_other:val/loss"]}, "ablation.yaml: metrics: no stage '1_other'"),
        (
            {"settings": {"data.micro_batch_size": "x"}},
            "arm low: command line: data.init_args.micro_batch_size: expected int",
        ),
    ],
)
def test_a_mistake_is_one_line(ablation, lnlit, settings, told):
    code, _, err = lnlit("ablate", ablation(**settings))
    assert code == 2 and told in err and err.count("\n") == 1, err


def test_an_arm_that_is_written_twice_is_refused(ablation, lnlit, tmp_path):
    ablation()
    text = (tmp_path / "ablation.yaml").read_text().replace("  high:", "  low: {}\n  high:")
    (tmp_path / "ablation.yaml").write_text(text)
    code, _, err = lnlit("ablate", "ablation.yaml")
    assert code == 2 and err == "error: ablation.yaml:4: the key 'low' is in line 3 already. Join the two.\n"


def test_a_part_in_ones_own_file_stays_so_in_the_files_of_a_stage(tmp_path, tiny_model, monkeypatch):
    """The run is another process: it knows the name that the user wrote, and its file is what the run was made by."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def good(request):\n    return 1.0\n")
    prompts = "{class_path: reasoning_gym, init_args: {split: train, size: 2, tasks: [basic_arithmetic]}}"
    text = f"stage: annotate\nmodel: {tiny_model}\nprompts: {prompts}\nout: o.jsonl\nsampling: {{max_new_tokens: 4}}\n"
    Path("1_annotate.yaml").write_text(f"{text}reward: {{class_path: mine.py:good}}\n")
    arms = {"two": {"sampling.samples_per_prompt": 2}, "three": {"sampling.samples_per_prompt": 3}}
    given = {"base": "1_annotate.yaml", "arms": arms, "seeds": [0], "metrics": ["x"], "out": "out"}
    run = runs_of(Ablation.of(given, "here", Path()))[0]
    assert yaml.safe_load(run.texts["1_annotate.yaml"])["reward"] == {"class_path": f"{tmp_path}/mine.py:good"}
    (stage,) = run.write(tmp_path / "written")
    assert stage.reads()[f"{tmp_path}/mine.py"] == [tmp_path / "mine.py"]


def test_a_function_does_the_same_with_settings_for_all(ablation, stages, tmp_path, monkeypatch):
    ablation()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    arms = {"plain": {}, "lora": {"model.lora": {"rank": 2}}}
    settings = {"trainer.limit_val_batches": 1}
    data = front.ablate("run.yaml", arms, [5], metrics="val/loss", out=tmp_path / "out", settings=settings)
    assert data["metrics"]["val/loss"]["lora"]["difference"]["seeds"]["low"] is None
    assert [run["outcome"] for run in data["runs"]] == ["finished"] * 2
    with pytest.raises(UserError, match=r"ablate: metrics\[0\]: expected a text, got 3"):
        front.ablate("run.yaml", arms, [5], metrics=[3], out="out")  # type: ignore[list-item]
