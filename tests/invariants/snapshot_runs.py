"""RPO against a copy of the policy on two ranks that share the model, as a script for them:

python -m torch.distributed.run ... snapshot_runs.py MODEL PROMPTS FOLDER

A run is left alone, and another is saved in FOLDER/begun after three rollouts of five; from a copy of that in
FOLDER/resumed a third goes on. What each rank found is in FOLDER/found.RANK.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from policy_runs import run

BEGUN, STEPS = 3, 5
#: A mesh takes no double precision.
SINGLE = "32-true"


def sharded(model: str, prompts: str, ranks: int, steps: int, root: Path | None = None) -> dict[str, Any]:
    """A run of ranks that hold a part of the model each. One rank is sharded too."""
    strategy = ModelParallelStrategy(ranks, 1, process_group_backend="gloo")
    given = {"steps": steps, "root": root, "strategy": strategy, "precision": SINGLE}
    return run(model, prompts, "rpo_by_two_rollouts", ranks=ranks, **given)


def main(model: str, prompts: str, folder: Path) -> None:
    torch.set_num_threads(1)
    found = {"whole": sharded(model, prompts, 2, STEPS), "begun": sharded(model, prompts, 2, BEGUN, folder / "begun")}
    if os.environ["RANK"] == "0":
        shutil.copytree(folder / "begun", folder / "resumed")
    torch.distributed.barrier()
    found["resumed"] = sharded(model, prompts, 2, STEPS, folder / "resumed")
    torch.save(found, folder / f"found.{os.environ['RANK']}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
