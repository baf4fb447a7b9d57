"""Run by torchrun on two ranks: python -m torch.distributed.run ... two_ranks.py STRATEGY MODEL OUT [TEACHER].

With a teacher the step is one of distillation, else of supervised fine-tuning.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from one_step import documents, step

from lnlit.data.packing import collate
from lnlit.modules.distill import Distill
from lnlit.modules.sft import SFT


def main(strategy_name: str, model: str, out: str, teacher: str | None = None) -> None:
    rank = int(os.environ["RANK"])
    strategies = {
        "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
        "fsdp2": lambda: ModelParallelStrategy(2, 1, process_group_backend="gloo"),
        "tp": lambda: ModelParallelStrategy(1, 2, process_group_backend="gloo"),
    }
    made = documents()
    if strategy_name != "tp":  # data-parallel ranks split the documents, three and five of them
        made = made[:3] if rank == 0 else made[3:]
    batch = collate([[document] for document in made], 32, pad_id=0)
    method = SFT if teacher is None else partial(Distill, teacher=teacher, lm=0.5, temperature=2.0)
    loss, gradients = step(Path(model), [batch], strategy=strategies[strategy_name](), devices=2, method=method)
    if rank == 0:
        torch.save({"loss": loss, "gradients": gradients}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
