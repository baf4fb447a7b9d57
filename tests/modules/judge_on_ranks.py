"""A reward model that ranks share, as a script for two of them:

python -m torch.distributed.run ... judge_on_ranks.py MODEL

Each rank compares what it gets with a whole model's rewards, under FSDP2 and under tensor parallelism.
"""

from __future__ import annotations

import faulthandler
import sys

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from lnlit.interfaces import RewardRequest
from lnlit.models.shards import own_part
from lnlit.modules.model_reward import ModelReward
from lnlit.rewards.pool import RewardPool

NAMES = ("data_parallel", "tensor_parallel")
#: The number of completions that each rank has to judge.
SHARES = (5, 0), (2, 3), (0, 0), (0, 1)


def asked(rank: int, count: int) -> list[RewardRequest]:
    return [
        RewardRequest([{"role": "user", "content": f"{rank}?" * (n + 1)}], "yes, " * (n % 3) + f"{n}.", False)
        for n in range(count)
    ]


def check(model: str, logit_index: int | None, sizes: tuple[int, int]) -> None:
    whole, shared = (ModelReward(model, logit_index, batch_tokens=40, dtype="float32") for _ in range(2))
    shared.shard(init_device_mesh("cpu", sizes, mesh_dim_names=NAMES))
    rank, pools = distributed.get_rank(), [RewardPool({"judge": each}, workers=1) for each in (whole, shared)]
    for share in SHARES:
        requests = asked(rank, share[rank])
        expected, found = ([row["judge"].value for row in pool.score(requests)] for pool in pools)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=0)
        assert len(set(found)) == len(found), "all alike"
    held, size = (
        sum(own_part(weight)[0].numel() for weight in each.network[0].parameters()) for each in (shared, whole)
    )
    assert held < 0.6 * size, (held, size)
    long = RewardRequest(asked(0, 1)[0].messages, "x" * 400, True)
    (refused,) = shared.score_batch([long])  # by both ranks
    assert refused.value is None and "the reward model's context" in str(refused.error)


def main(model: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for sizes in ((2, 1), (1, 2)):
        for logit_index in (None, 7):
            check(model, logit_index, sizes)
    distributed.destroy_process_group()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(170, exit=True)  # ranks that wait for each other say where
    main(sys.argv[1])
