"""Every ablation we ship names keys that there are, and arms that differ; two small ones run to their table."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import lnlit.cli.processes
from lnlit.cli.arms import Ablation, runs_of
from lnlit.cli.main import main
from lnlit.testing.tiny import tiny_folder

FOLDER = Path(__file__).parents[2] / "yaml" / "ablations"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if "arms" in yaml.safe_load(path.read_text()))
pytestmark = pytest.mark.usefixtures("vllm_plugin")
LARGE = [path for path in FILES if path.parent == FOLDER]


def ablation(path: Path, **instead: Any) -> Ablation:
    return Ablation.of(yaml.safe_load(path.read_text()) | instead, path.name, path.parent)


def test_each_has_a_small_form_that_says_so():
    assert {path.name for path in LARGE} == {path.name for path in FILES if path.parent.name == "tiny"}
    assert len(LARGE) == 12


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_its_keys_are_taken_and_its_arms_differ(path):
    """Also: every run is of its own folder, with metrics of files that it has, and reads what it wrote itself."""
    found = ablation(path, seeds=[0])
    assert str(found.out).startswith("runs/ablations/")
    runs = runs_of(found)
    texts = ["".join(run.texts.values()).replace(str(run.folder), "RUN") for run in runs]
    assert len(set(texts)) == len(found.arms)
    for run in runs:
        stages = run.texts.keys()
        written = set(re.findall(r"\b(?:out|default_root_dir): (\S+)", "".join(run.texts.values())))
        assert all(each.startswith(str(run.folder)) for each in written)
        read = set(re.findall(rf"{re.escape(str(run.folder))}/[^\s,\]]+", "".join(run.texts.values()))) - written
        assert all(any(each.startswith(f"{out}/") for out in written) for each in read), read - written
        assert any(f"{found.measured(metric)[0]}.yaml" in stages for metric in found.metrics)


def test_two_small_ones_run_to_their_table(tmp_path, monkeypatch, capsys):
    """With a model of two layers where SmolLM2 would be, and a few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lnlit.cli.processes, "guarded", lambda command, lock: (main(command[3:]), 0))
    for name in ("smollm2", "mini/fused", "mini/base"):
        tiny_folder(tmp_path / "runs" / name)
    for part in ("train", "valid"):
        file = tmp_path / "data" / "pydocs" / f"{part}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(file, "wt") as lines:
            lines.writelines(json.dumps({"text": f"{part} {number} " * 20}) + "\n" for number in range(40))
    quick = {"trainer.accelerator": "cpu", "model.runtime.compile": False, "trainer.logger": False}
    short = {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.sequence_length": 64}
    options = [f"--{key}={value}".lower() for key, value in (quick | short).items()]
    assert main(["ablate", str(FOLDER / "tiny" / "kd_loss.yaml"), "--seeds", "0", *options]) == 0
    table = capsys.readouterr().out
    assert len(re.findall(r"^\| \w+ \| 1 of 1 \|", table, re.M)) == 8 and table.count("one of seeds says nothing") == 6

    sums = {"data.held_out.prompts.size": 6, "data.prompts.size": 6, "data.rollout.max_new_tokens": 8}
    options = [f"--5_sft.{key}={value}".lower() for key, value in (quick | {"trainer.max_steps": 1}).items()]
    options += ["--5_sft.data.train.size=40", "--5_sft.data.sequence_length=256"]
    judge = {
        **sums,
        "data.rollout.reward_workers": 1,
        "trainer.accelerator": "cpu",
        "trainer.logger": False,
        "model.runtime.compile": False,
    }
    options += [f"--9_sums.{key}={value}".lower() for key, value in judge.items()]
    assert main(["ablate", str(FOLDER / "tiny" / "sft_learning_rate.yaml"), "--seeds", "0", *options]) == 0
    table = capsys.readouterr().out
    assert table.count("one of seeds says nothing of others") == 4 and "not known" not in table
    data = json.loads((tmp_path / "runs/ablations/tiny/sft_learning_rate/ablation.json").read_text())
    assert data["metrics"]["val/rewards/format/mean"]["3e-5"]["difference"]["questions"]["pairs"] == 6
