"""Whole stages on several ranks: python -m torch.distributed.run ... two_rank_stages.py FOLDER PART LIMIT_S.

A stage has every callback that a run has by itself and those that write a result, validates, computes in bf16-mixed
and ends in a model folder. One process group serves all stages of a part: starting Python takes longer than they do.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lnlit.callbacks import Checkpoint, ExportModel, MemoryRecorder, RolloutLog, ToggleReport, default_callbacks
from lnlit.callbacks.checkpoints import checkpoint_folder
from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.interfaces import BatchReward, RewardResult
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import HeldOut, PromptData, RolloutConfig, Weighted
from lnlit.modules.sft import SFT
from lnlit.rollout.native import NativeEngine

#: Rows in an optimizer step, whatever the number of ranks; steps of a stage, and those after which a resumed one ends.
ROWS, STEPS, MORE = 6, 2, 4
OPTIMIZER = AdamW(1e-2, schedule="constant", warmup_ratio=0.0)


def trainer(root: Path, ranks: str, **settings: Any) -> L.Trainer:
    """`ranks` is "ddp" (two of them), or such as "dp2" (FSDP2) and "tp2" (tensor parallelism)."""
    if ranks == "ddp":
        size, strategy = 2, DDPStrategy(process_group_backend="gloo")
    else:
        size = int(ranks[2:])
        sizes = (size, 1) if ranks.startswith("dp") else (1, size)
        strategy = ModelParallelStrategy(*sizes, process_group_backend="gloo")
    return L.Trainer(
        accelerator="cpu",
        devices=size,
        strategy=strategy,
        gradient_clip_val=1.0,
        default_root_dir=root,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # as the command line sets it
        **settings,
    )


def stage(root: Path, ranks: str, writers: list[L.Callback]) -> L.Trainer:
    return trainer(
        root,
        ranks,
        precision="bf16-mixed",
        max_steps=STEPS,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        callbacks=[*default_callbacks(), *writers, ExportModel(str(root / "out"))],
        logger=TensorBoardLogger(root, "", "logs"),
    )


def rows(folder: Path) -> JsonlSource:
    file = folder / "rows.jsonl"
    if not file.exists():
        chats = [
            [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * (i % 9 + 1)}]
            for i in range(ROWS * MORE)
        ]
        file.write_text("".join(json.dumps({"messages": chat, "answer": "1"}) + "\n" for chat in chats))
    return JsonlSource(str(file))


def chats(folder: Path, micro_batch_size: int) -> ChatData:
    return ChatData(str(folder / "model"), rows(folder), 96, micro_batch_size, val=rows(folder), packing=False)


def chat(folder: Path, ranks: str) -> None:
    """SFT with `ToggleReport`."""
    run = stage(folder / f"chat-{ranks}", ranks, [ToggleReport(rows(folder), 3, 3, 4)])
    run.fit(SFT(str(folder / "model"), OPTIMIZER), chats(folder, ROWS // 2))


class Letters(BatchReward):
    """Something to learn for a model that only babbles."""

    def score_batch(self, requests):
        return [RewardResult(float(sum(map(ord, request.completion)) % 97)) for request in requests]


def policy(folder: Path, ranks: str) -> None:
    """GRPO with `RolloutLog` and `MemoryRecorder`."""
    model = str(folder / "model")
    data = PromptData(
        model,
        rows(folder),
        [Weighted(Letters())],
        NativeEngine(8, "float32", "cpu"),
        RolloutConfig(4, 2, max_new_tokens=4, reward_workers=1),
        held_out=HeldOut(rows(folder)),
    )
    stage(folder / f"policy-{ranks}", ranks, [RolloutLog(), MemoryRecorder()]).fit(GRPO(model, OPTIMIZER), data)


def resume(folder: Path, source: str, ranks: str, steps: int = MORE) -> str:
    """Go on from the newest checkpoint of another run up to `steps`, in full precision; the new run's name."""
    name = f"{source}-{ranks}"
    run = trainer(
        folder / name,
        ranks,
        max_steps=steps,
        limit_val_batches=0,
        callbacks=[Checkpoint(0)],
        logger=False,
        enable_progress_bar=False,
    )
    apart = {"tp": 1, "dd": 2}.get(ranks[:2]) or int(ranks[2:])
    (newest,) = checkpoint_folder(folder / source).iterdir()
    run.fit(SFT(str(folder / "model"), OPTIMIZER), chats(folder, ROWS // apart), ckpt_path=newest)
    return name


def main(folder: Path, part: str) -> None:
    if part == "three":
        resume(folder, "chat-dp2", "dp3")
        return
    for ranks in ("ddp", "dp2"):
        chat(folder, ranks)
        policy(folder, ranks)
    for source, ranks in (("chat-dp2", "dp2"), ("chat-ddp", "ddp"), ("chat-ddp", "dp2")):
        resume(folder, source, ranks)
    split = resume(folder, "chat-dp2", "tp2", MORE - 1)
    resume(folder, split, "dp2")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(float(sys.argv[3]), exit=True)  # ranks that wait for each other say where
    main(Path(sys.argv[1]), sys.argv[2])
