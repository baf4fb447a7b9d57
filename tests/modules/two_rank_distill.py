"""Distils the tiny library on two ranks, run by torch.distributed.run: two_rank_distill.py PARENT LIBRARY TEXT OUT.

One run is left alone, one is stopped with a checkpoint, one trains the layers one after another, one trains pairs in
bf16, one is refused.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
from distillery import GROUPS, MIXED, STEPS, Distillery, StopAt
from lightning.pytorch.strategies import DDPStrategy

from lnlit.errors import UserError


class Held(L.Callback):
    """Notes how many of the parent's weights a rank holds after training, and the tokens that it ran the parent on."""

    tokens = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module._run.parent.layers[0].input_layernorm.register_forward_pre_hook(self.note)

    def note(self, module, inputs) -> None:
        self.tokens += inputs[0].shape[:2].numel()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (out / f"ran-{trainer.global_rank}.txt").write_text(str(self.tokens))
        count = sum(parameter.to_local().numel() for parameter in pl_module._run.parent.parameters())
        (out / f"held-{trainer.global_rank}.txt").write_text(str(count))


def ranks(trainer: dict[str, Any]) -> dict[str, Any]:
    return {**trainer, "strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2}


if __name__ == "__main__":
    parent, library, text, out = map(Path, sys.argv[1:])
    distillery = Distillery(parent, library, text, out, rows=1)
    distillery.fit("whole", (Held(),), ranks({"max_steps": STEPS}))
    distillery.fit("stopped", (StopAt(3),), ranks({"max_steps": STEPS}))
    distillery.fit("grouped", (), ranks(GROUPS), layers_at_once=1)
    distillery.fit("mixed", (), ranks({"max_steps": STEPS, "precision": "bf16-mixed"}), **MIXED)
    try:
        distillery.fit("refused", (), ranks(GROUPS), layers_at_once=1, only=("layer_00/ffn/*", "layer_01/ffn/i16"))
    except UserError as error:
        (out / f"refused-{os.environ['RANK']}.txt").write_text(str(error))
