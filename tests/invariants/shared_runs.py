"""Short runs of policies on ranks that share engines, or draw a rollout ahead, as a script for several ranks:

python -m torch.distributed.run ... shared_runs.py MODEL PROMPTS OUT

What each rank found is in OUT.RANKS.RANK.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from policy_runs import run

#: A mesh takes no double precision. It is a setting of the whole process, so that an engine in a thread would sample in
#: it while a step is taken.
SINGLE = "32-true"
#: What a run asks for, by its name; one rank with an engine of its own is asked for the same.
ASKED: dict[str, dict[str, Any]] = {
    "two_updates": {"case": "two_updates", "steps": 4},
    "resampled": {"case": "resampled"},
    "asleep": {"case": "token_mean", "sleep_engine_while_training": True},
    "ahead": {"case": "two_updates", "steps": 6, "max_staleness": 1, "precision": SINGLE},
    "resampled_ahead": {"case": "resampled", "steps": 4, "max_staleness": 1, "precision": SINGLE},
}
#: For each number of ranks: (what is asked, ranks that share an engine, data-parallel ranks of a mesh or None for DDP).
RUNS: dict[int, list[tuple[str, int, int | None]]] = {
    2: [
        ("two_updates", 2, None),
        ("resampled", 2, None),
        ("asleep", 2, None),
        ("ahead", 1, None),
        ("ahead", 2, None),
        ("resampled_ahead", 2, None),
        ("two_updates", 2, 2),
        ("two_updates", 2, 1),
    ],
    4: [
        ("two_updates", 2, None),
        ("two_updates", 4, None),
        ("ahead", 2, None),
        ("asleep", 4, 4),
        ("two_updates", 2, 2),
        ("resampled", 4, 2),
    ],
}


def strategy(ranks: int, data_parallel: int | None) -> Any:
    if data_parallel is None:
        return None
    return ModelParallelStrategy(data_parallel, ranks // data_parallel, process_group_backend="gloo")


def main(model: str, prompts: str, out: str) -> None:
    torch.set_num_threads(1)
    ranks, found = int(os.environ["WORLD_SIZE"]), {}
    for name, shared_by, data_parallel in RUNS[ranks]:
        mesh = strategy(ranks, data_parallel)
        asked = {"ranks": ranks, "ranks_per_engine": shared_by, "strategy": mesh, **ASKED[name]}
        if mesh is not None:
            asked["precision"] = SINGLE
        found[f"{name} {shared_by} {data_parallel}"] = run(model, prompts, **asked)
    torch.save(found, f"{out}.{ranks}.{os.environ['RANK']}")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(280, exit=True)  # ranks that wait for each other say where
    main(*sys.argv[1:])
