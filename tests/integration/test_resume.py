"""A run killed at random moments ends in the same weights, bit for bit, as one that was left alone."""

import json
import os
from pathlib import Path

import pytest
import torch
import warm

from lnlit.callbacks.checkpoints import checkpoint_folder, list_checkpoints

KILLS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    script = Path(__file__).with_name("kill_and_resume.py")
    done = warm.run(script, folder, str(KILLS), timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["finished"], done.stderr[-3000:]
    return folder


def final_state(folder: Path, run: str) -> dict:
    (path,) = list_checkpoints(checkpoint_folder(folder / run))
    return torch.load(path, weights_only=True)


def test_final_weights_and_moments_are_bitwise_equal(folder):
    whole, killed = final_state(folder, "whole"), final_state(folder, "killed")
    assert whole["global_step"] == killed["global_step"] > 0
    assert whole["state_dict"].keys() == killed["state_dict"].keys()
    assert all(torch.equal(value, killed["state_dict"][name]) for name, value in whole["state_dict"].items())
    moments = [run["optimizer_states"][0]["state"] for run in (whole, killed)]
    for index, state in moments[0].items():
        assert all(torch.equal(value, moments[1][index][name]) for name, value in state.items())


def test_every_step_saw_the_same_rows(folder):
    """A killed run repeats the steps after its last checkpoint, and each repetition must read what it read before."""

    def rows_by_step(run: str) -> dict[int, list[int]]:
        seen: dict[int, list[int]] = {}
        for line in (folder / f"{run}.journal").read_text().splitlines():
            step, digest = json.loads(line)
            seen.setdefault(step, []).append(digest)
        return seen

    whole, killed = rows_by_step("whole"), rows_by_step("killed")
    assert whole.keys() == killed.keys()
    assert sum(map(len, killed.values())) > sum(map(len, whole.values()))
    for step, digests in killed.items():
        assert set(digests) == set(whole[step]), step


def test_nothing_but_the_newest_checkpoint_is_left(folder):
    files = sorted(path.name for path in checkpoint_folder(folder / "killed").iterdir())
    assert files == ["step-90.ckpt"]
