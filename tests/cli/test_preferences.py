"""RPO and reward models from the command line, on preference data that nobody sampled."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from lnlit.checkpoint.folder import read_provenance
from lnlit.interfaces import RewardRequest
from lnlit.registry import build

CONFIG = """\
trainer:
  max_epochs: 3
  accelerator: cpu
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: ExportModel
      init_args: {{out: out}}
model:
  class_path: RPO
  init_args:
    model: {model}
    beta: 1.0e-5
    eta: 3.0
    optimizer: {{learning_rate: 0.001, schedule: constant, warmup_ratio: 0.0}}
data:
  class_path: PreferenceData
  init_args:
    tokenizer: {model}
    train: {{class_path: jsonl, init_args: {{paths: train.jsonl}}}}
    val: {{class_path: jsonl, init_args: {{paths: val.jsonl}}}}
    sequence_length: 64
    micro_batch_size: 4
"""


def hh_rows(first: int, count: int) -> str:
    """Which of two letters is better shows in the prompt."""
    rows = []
    for n in range(first, first + count):
        better, worse = "ab" if n % 2 else "ba"
        question = f"\n\nHuman: {'odd' if n % 2 else 'even'} {n}?\n\nAssistant: "
        rows.append({"chosen": question + better * (1 + n % 5), "rejected": question + worse * (1 + n % 3)})
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def written(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(hh_rows(0, 60))
    (tmp_path / "val.jsonl").write_text(hh_rows(100, 20))
    (tmp_path / "run.yaml").write_text(CONFIG.format(model=tiny_model))
    return tmp_path


@pytest.mark.parametrize("loss", ["backward", "squared", "dpo"])
def test_rpo_learns_offline_with_the_papers_numbers(lnlit, written, loss, caplog):
    code, _, err = lnlit("fit", "--config", "run.yaml", "--model.init_args.loss", loss)
    assert code == 0, err
    assert "train: 60 prompts with 2 completions each" in caplog.text and "val: 20 prompts" in caplog.text
    metrics = read_provenance(written / "out")["metrics"]
    assert metrics["val/rewards/accuracies"] == 1.0  # of prompts that it was not trained on
    assert metrics["val/rewards/margins"] > 1e-5  # more than one nat, times beta


def test_a_reward_model_and_the_reward_that_reads_it(lnlit, written):
    config = yaml.safe_load((written / "run.yaml").read_text())
    config["model"]["class_path"] = "RewardModel"
    for key in ("beta", "eta"):
        del config["model"]["init_args"][key]
    for name in ("train.jsonl", "val.jsonl"):  # one letter is always better
        odd = [line for line in (written / name).read_text().splitlines(keepends=True) if "odd" in line]
        (written / name).write_text("".join(odd))
    config["trainer"]["max_epochs"] = 6
    (written / "rm.yaml").write_text(yaml.safe_dump(config))
    code, _, err = lnlit("fit", "--config", "rm.yaml")
    assert code == 0, err
    metrics = read_provenance(written / "out")["metrics"]
    assert metrics["val/accuracy"] == 1.0 and metrics["val/margin"] > 0.5
    reward = build("reward", "reward_model", str(written / "out"))
    asked = [RewardRequest([{"role": "user", "content": "odd 301?"}], text, False) for text in ("aaa", "bbb")]
    assert reward.score(asked[0]) > reward.score(asked[1])


def test_one_file_is_split_by_question(lnlit, written, caplog):
    config = yaml.safe_load((written / "run.yaml").read_text())
    given = config["data"]["init_args"]
    rows = {"class_path": "lnlit.data.preference_rows.PreferenceRows", "init_args": {"source": given["train"]}}
    for key, side in (("train", "train"), ("val", "heldout")):
        given[key] = {"class_path": "split", "init_args": {"source": rows, "split": side, "heldout_percent": 20}}
    config["trainer"] |= {"max_steps": 1, "max_epochs": None, "callbacks": None}
    (written / "split.yaml").write_text(yaml.safe_dump(config))
    code, _, err = lnlit("fit", "--config", "split.yaml")
    assert code == 0, err
    counts = [int(count) for count in re.findall(r"(\d+) prompts with 2 completions", caplog.text)]
    assert len(counts) == 2 and sum(counts) == 60 and counts[1]
