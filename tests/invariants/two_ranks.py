"""Run by torchrun on two ranks: python -m torch.distributed.run ... two_ranks.py STRATEGIES MODEL OUT [TEACHER].

Takes the same step under each strategy, one after another, since a process takes longer to start than a step does;
OUT.STRATEGY is what comes of it. With a teacher the step is one of distillation, else of supervised fine-tuning.
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

STRATEGIES = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: ModelParallelStrategy(2, 1, process_group_backend="gloo"),
    "tp": lambda: ModelParallelStrategy(1, 2, process_group_backend="gloo"),
}


def main(names: str, model: str, out: str, teacher: str | None = None) -> None:
    rank = int(os.environ["RANK"])
    method = SFT if teacher is None else partial(Distill, teacher=teacher, lm_weight=0.5, temperature=2.0)
    for name in names.split(","):
        made = documents()
        if name != "tp":  # data-parallel ranks split the documents, three and five of them
            made = made[:3] if rank == 0 else made[3:]
        batch = collate([[document] for document in made], 32, pad_id=0)
        loss, gradients = step(Path(model), [batch], strategy=STRATEGIES[name](), devices=2, method=method)
        if rank == 0:
            torch.save({"loss": loss, "gradients": gradients}, f"{out}.{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
