"""What is given last stands as it was given: nothing of a replaced list lives on in its successor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lnlit.cli.stage_commands import SEARCH

TARGETS = """
problem: problem.json
out: solution.json
deployment:
  targets:
  - {cost: latency_s, max: 0.8, of_parent: true}
  - {cost: memory_mib, max: 0.7, of_parent: true}
"""
REWARDS = """
model: {class_path: GRPO, init_args: {model: folder, optimizer: {learning_rate: 1.0}}}
data:
  class_path: PromptData
  init_args:
    tokenizer: folder
    prompts: {class_path: jsonl, init_args: {paths: rows.jsonl}}
    rewards: [{reward: {class_path: math_answer}, weight: 5.0, name: answer}]
trainer: {callbacks: [{class_path: SampleGenerations, init_args: {max_new_tokens: 7}}], max_steps: 1}
"""


def solve(*options: str) -> list[dict[str, Any]]:
    _, _, config = SEARCH.parsed("solve", list(options))
    targets = config.deployment.targets
    return [{key: value for key, value in vars(target).items() if value not in (None, False)} for target in targets]


@pytest.fixture
def targets(tmp_path: Path) -> str:
    (tmp_path / "solve.yaml").write_text(TARGETS)
    return str(tmp_path / "solve.yaml")


def test_an_option_replaces_a_files_list(targets: str):
    assert solve("--config", targets)[0] == {"cost": "latency_s", "max": 0.8, "of_parent": True}
    given = [{"cost": "latency_s", "max": 0.45}, {"cost": "memory_mib", "max": 900.0}]
    assert solve("--config", targets, "--deployment.targets", str(given)) == given
    assert solve("--config", targets, "--deployment.targets", str(given[:1])) == given[:1]


def test_a_second_file_replaces_the_firsts_list(targets: str, tmp_path: Path):
    given = [{"cost": "parameters", "min": 3.0}, {"cost": "latency_s", "max": 0.45}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"deployment": {"targets": given}}))
    assert solve("--config", targets, "--config", str(tmp_path / "mine.yaml")) == given


def test_what_changes_one_item_by_design_still_does(targets: str):
    added = {"cost": "parameters", "max": 5.0}
    assert solve("--config", targets, "--deployment.targets+", str(added))[1:] == [
        {"cost": "memory_mib", "max": 0.7, "of_parent": True},
        added,
    ]


def printed(lnlit, *options: str) -> dict[str, Any]:
    code, out, err = lnlit("fit", *options, "--print_config")
    assert code == 0, err
    return yaml.safe_load(out)


def test_a_replaced_reward_and_callback_keep_nothing(lnlit, tmp_path: Path):
    (tmp_path / "grpo.yaml").write_text(REWARDS)
    config = printed(lnlit, "--config", "grpo.yaml", "--data.rewards", "[{reward: {class_path: format}}]")
    (reward,) = config["data"]["init_args"]["rewards"]
    assert reward["reward"]["class_path"].endswith("FormatReward")
    assert reward["weight"] == 1.0 and reward["name"] != "answer"

    config = printed(lnlit, "--config", "grpo.yaml", "--trainer.callbacks", "[{class_path: SampleGenerations}]")
    (callback,) = config["trainer"]["callbacks"]
    assert callback["init_args"]["max_new_tokens"] != 7


def test_the_class_of_an_item_is_not_inherited(lnlit, tmp_path: Path):
    (tmp_path / "grpo.yaml").write_text(REWARDS)
    code, _, err = lnlit("fit", "--config", "grpo.yaml", "--data.rewards", "[{weight: 2}]")
    assert code == 2 and err.startswith("error: command line: data.init_args.rewards[0]: the key 'reward' is missing")
    code, _, err = lnlit("fit", "--config", "grpo.yaml", "--data.rewards+", "{weight: 2}")
    assert code == 2 and err.startswith("error: command line: data.init_args.rewards[1]: the key 'reward' is missing")
