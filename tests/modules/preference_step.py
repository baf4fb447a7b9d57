"""One step of a method on preference data, and its validation; also as a script for two ranks:

python -m torch.distributed.run ... preference_step.py METHOD MODEL TRAIN VAL OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from lnlit.data.preference import PreferenceData
from lnlit.data.sources import JsonlSource
from lnlit.modules.optim import AdamW
from lnlit.modules.reward_model import RewardModel
from lnlit.modules.rpo import RPO


class Gradients(L.Callback):
    def on_gradient_norm(self, trainer: L.Trainer, pl_module: Any, norm: float) -> bool:
        self.found = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        return False


def step(method: str, model: str, train: str, val: str, ranks: int) -> dict[str, Any]:
    """Metrics of training and validation, and gradients, of four rows."""
    optimizer = AdamW(1e-9, schedule="constant", warmup_ratio=0.0)
    module = (
        RewardModel(model, optimizer) if method == "RewardModel" else RPO(model, optimizer, beta=0.1, loss="squared")
    )
    data = PreferenceData(model, JsonlSource(train), 64, 4 // ranks, val=JsonlSource(val))
    seen = Gradients()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="auto" if ranks == 1 else DDPStrategy(process_group_backend="gloo"),
        max_steps=1,
        limit_val_batches=1.0,
        val_check_interval=1,
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"metrics": metrics, "gradients": seen.found, "rank": trainer.global_rank}


if __name__ == "__main__":
    result = step(*sys.argv[1:5], ranks=2)
    if result["rank"] == 0:
        torch.save(result, Path(sys.argv[5]))
