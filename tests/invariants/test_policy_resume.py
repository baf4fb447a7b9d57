"""A run of `lnlit fit` that is killed and goes on samples, earns and learns what one does that nobody touched."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
import yaml
from policy_runs import run, write_prompts

from lnlit.testing.tiny import tiny_folder

STEPS = 6


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of installed packages with the plugin of `policy_parts` in it."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "policy_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: policy-parts\nVersion: 1.0\n")
    points = {"rollout": "policy_parts:DeadlyEngine", "reward": "policy_judge:DeadlyReward"}
    lines = [f"[lnlit.{kind}]\ndeadly = {target}\n" for kind, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[str, str]:
    """(model, prompts)"""
    folder = tmp_path_factory.mktemp("policy")
    return str(tiny_folder(folder / "model")), write_prompts(folder / "prompts.jsonl")


def configuration(files: tuple[str, str]) -> dict[str, Any]:
    model, prompts = files
    optimizer = {"learning_rate": 1e-3, "schedule": "constant", "warmup_ratio": 0.0}
    settings = {"model": model, "optimizer": optimizer, "kl": {"weight": 0.1}}
    data = {
        "tokenizer": model,
        "prompts": {"class_path": "jsonl", "init_args": {"paths": prompts}},
        "rewards": [{"reward": {"class_path": "deadly"}, "name": "letters"}],
        "engine": {"class_path": "deadly", "init_args": {"batch_size": 4, "dtype": "float32", "device": "cpu"}},
        "rollout": {
            "prompts_per_rollout": 4,
            "samples_per_prompt": 3,
            "max_new_tokens": 8,
            "updates_per_rollout": 2,
            "reward_workers": 1,
        },
    }
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "policy_parts.Journal"},
                {"class_path": "Checkpoint", "init_args": {"every_n_steps": 1}},
            ],
        },
        "model": {"class_path": "GRPO", "init_args": settings},
        "data": {"class_path": "PromptData", "init_args": data},
    }


class Runs:
    """Processes of one configuration, in one folder."""

    def __init__(self, folder: Path, site: Path, tree: dict[str, Any]) -> None:
        self.root, self.journal = folder / "run", folder / "journal"
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(tree))
        paths = os.pathsep.join([str(site), str(Path(__file__).parent)])
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "JOURNAL": str(self.journal)}

    def start(self, *arguments: str, server: int = 0, **when: str) -> warm.Process:
        fit = ["-m", "lnlit.cli.main", "fit", "--config", self.config, "--trainer.default_root_dir", self.root]
        environment = {**self.environment, **when}
        return warm.Process(*fit, *arguments, env=environment, start_new_session=True, server=server)

    def fit(self, *arguments: str, server: int = 0, **when: str) -> tuple[int | None, str]:
        """(exit code, errors)"""
        process = self.start(*arguments, server=server, **when)
        errors = process.communicate(timeout=120)[1]
        return process.returncode, errors

    @property
    def samples(self) -> list[Any]:
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    @property
    def state(self) -> dict[str, Any]:
        """The last checkpoint's."""
        found = torch.load(self.root / "checkpoints" / f"step-{STEPS}.ckpt", weights_only=True)
        return {name: found[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}


def equal(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.fixture(scope="module")
def whole(site, files, tmp_path_factory) -> Runs:
    """A run that nobody touched."""
    runs = Runs(tmp_path_factory.mktemp("whole"), site, configuration(files))
    code, errors = runs.fit()
    assert code == 0, errors
    assert [version for _, version, _ in runs.samples] == [0, 2, 4]
    return runs


@pytest.fixture
def broken(site, files, tmp_path) -> Runs:
    """The same run, untouched so far."""
    return Runs(tmp_path, site, configuration(files))


@pytest.mark.parametrize(("dies", "after"), [("between", 2), ("generate", 1), ("reward", 2)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(whole, broken, dies, after):
    code, errors = broken.fit(DIES=dies, AFTER=str(after))
    assert code == -signal.SIGKILL, errors
    assert len(broken.samples) == after
    judges = broken.journal.with_suffix(".judges").read_text().split()
    wait_until_gone(int(judges[-1]))
    code, errors = broken.fit("--ckpt_path", "last", server=1)
    assert code == 0, errors
    assert broken.samples == whole.samples
    assert equal(broken.state, whole.state)


def wait_until_gone(process: int) -> None:
    """A judge does not outlive the trainer that it works for."""
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {process} is still there")


def test_after_ctrl_c_a_run_goes_on_as_if_nothing_had_been(whole, broken):
    process = broken.start()
    while not broken.journal.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the judges get it as well
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130, errors
    assert "go on with --ckpt_path last" in errors
    assert len(broken.samples) < len(whole.samples)
    code, errors = broken.fit("--ckpt_path", "last")
    assert code == 0, errors
    assert broken.samples == whole.samples
    assert equal(broken.state, whole.state)


@pytest.mark.parametrize("case", ["two_updates", "rloo_two_updates", "rpo_by_rollout", "rpo_by_two_rollouts"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_run_goes_on_in_other_micro_batches(files, tmp_path, case, stop):
    """Stopped between rollouts and within one; each part is cut differently, and the last by itself."""
    expected = run(*files, case, steps=5)
    begun = run(*files, case, accumulate=2, steps=stop, root=tmp_path)
    resumed = run(*files, case, accumulate=3, steps=4, root=tmp_path)
    ended = run(*files, case, accumulate=1, steps=5, root=tmp_path)
    assert begun["seen"] + resumed["seen"] + ended["seen"] == expected["seen"]
    for name, weight in expected["weights"].items():
        assert (ended["weights"][name] - weight).norm() <= 1e-6 * weight.norm(), name
