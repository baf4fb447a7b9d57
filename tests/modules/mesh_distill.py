"""Distils the tiny library under one strategy after another, on as many ranks as torch.distributed.run starts:

mesh_distill.py PARENT LIBRARY TEXT OUT STRATEGY,STRATEGY,...

Of each, OUT/STRATEGY is the library of a run that was stopped and went on, OUT/STRATEGY-halved what is there of one
that was only stopped, OUT/STRATEGY-grouped that of the layers one after another, and OUT/STRATEGY.held-RANK what a rank
held of the parent.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from distillery import GROUPS, Distillery, StopAt
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor

from lnlit.modules.optim import AdamW

STEPS, ROWS = 5, 4
#: name -> (ranks that see different rows, ranks that divide a layer, replicas)
MESHES = {"fsdp2": (2, 1, 1), "tp2": (1, 2, 1), "fsdp2xtp2": (2, 2, 1), "hsdp2x2": (4, 1, 2), "ddp4": None}
#: A small epsilon would blow up what rounding makes of a gradient that is nearly 0.
SETTINGS = {
    "optimizer": AdamW(3e-3, eps=1e-4, warmup_ratio=0.0, schedule="constant"),
    "only": ("*/attention/*", "*/ffn/*", "*/block/kv1+i16"),
}


class Held(L.Callback):
    """Notes how many of the parent's weights a rank holds after training."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        parameters = pl_module._run.parent.parameters()
        count = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
        Path(f"{self.file}.held-{trainer.global_rank}").write_text(str(count))


def flags(name: str) -> tuple[dict[str, Any], int, int]:
    """(the trainer's flags, rows of each rank, replicas)."""
    mesh = MESHES[name]
    if mesh is None:
        ranks = int(name[-1])
        return {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": ranks}, ROWS // ranks, 1
    data, tensor, replicas = mesh
    strategy = ModelParallelStrategy(data, tensor, process_group_backend="gloo")
    return {"strategy": strategy, "devices": data * tensor}, ROWS // data, replicas


def main(parent: Path, library: Path, text: Path, out: Path, names: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def fit(name: str, to: str, *callbacks: L.Callback, trainer: Any = None, **settings: Any) -> None:
        made, rows, replicas = flags(name)
        distillery = Distillery(parent, library, text, out, rows)
        settings = {**SETTINGS, "replicas": replicas, **settings}
        distillery.fit(to, callbacks, {**(trainer or {"max_steps": STEPS}), **made}, **settings)

    for name in names.split(","):
        fit(name, name, StopAt(3))
        fit(name, name, Held(out / name))
        fit(name, f"{name}-halved", StopAt(3))
        if name in ("tp2", "fsdp2xtp2"):
            fit(name, f"{name}-grouped", trainer={**GROUPS, "limit_train_batches": STEPS}, layers_at_once=1)


if __name__ == "__main__":
    parent, library, text, out = map(Path, sys.argv[1:5])
    main(parent, library, text, out, sys.argv[5])
