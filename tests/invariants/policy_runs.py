"""Short runs of policies on samples of their own, the same on any number of ranks; also as a script for two of them:

python -m torch.distributed.run ... policy_runs.py MODEL PROMPTS BEGUN OUT
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from lnlit.callbacks.checkpoints import Checkpoint, checkpoint_folder, list_checkpoints
from lnlit.data.sources import JsonlSource
from lnlit.interfaces import BatchReward, RewardRequest, RewardResult
from lnlit.models.weights import gathered, reshard
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy
from lnlit.modules.prompt_data import LogprobCheck, PromptData, RolloutConfig, Weighted
from lnlit.modules.reference import OldPolicy, PolicySnapshot
from lnlit.modules.rloo import RLOO
from lnlit.modules.rpo import RPO
from lnlit.objectives.kl import KL
from lnlit.rl.reinforce_plus_plus import ReinforcePlusPlus
from lnlit.rollout.native import NativeEngine

IN_LOSS, IN_REWARD = KL(0.1, "k2", "loss"), KL(0.1, "k1", "reward")
#: name -> (method, its settings, those of the data)
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "token_mean": (GRPO, {}, {}),
    "sequence_mean": (GRPO, {"reduction": "sequence_mean", "scale_rewards": "none"}, {}),
    "constant_length": (GRPO, {"reduction": "constant_length"}, {}),
    "batch_std": (GRPO, {"scale_rewards": "batch"}, {}),
    "masked": (GRPO, {"reduction": "sequence_mean", "scale_rewards": "batch"}, {"mask_truncated": True}),
    "masked_constant_length": (GRPO, {"reduction": "constant_length"}, {"mask_truncated": True}),
    "kl_in_loss": (GRPO, {"kl": IN_LOSS, "scale_rewards": "batch"}, {}),
    "masked_kl_in_reward": (GRPO, {"kl": IN_REWARD}, {"mask_truncated": True}),
    "kl_in_reward": (GRPO, {"kl": IN_REWARD}, {"updates_per_rollout": 2}),
    "two_updates": (GRPO, {"kl": KL(0.1)}, {"updates_per_rollout": 2, "mask_truncated": True}),
    "whole_samples": (GRPO, {"ratio": "sequence_mean", "correction": None}, {"updates_per_rollout": 2}),
    "resampled": (GRPO, {}, {"dynamic_sampling": 2}),
    "rloo": (RLOO, {}, {}),
    "rloo_two_updates": (RLOO, {}, {"updates_per_rollout": 2}),
    "by_tokens": (Policy, {"algorithm": ReinforcePlusPlus()}, {"mask_truncated": True}),
    "rpo": (RPO, {"beta": 0.1}, {}),
    "rpo_masked": (RPO, {"beta": 0.1, "loss": "squared"}, {"mask_truncated": True, "max_new_tokens": 12}),
    "rpo_by_rollout": (RPO, {"beta": 0.1, "reference": OldPolicy()}, {"updates_per_rollout": 2}),
    "rpo_by_two_rollouts": (RPO, {"beta": 0.1, "reference": PolicySnapshot(2)}, {}),
}
#: What two ranks run, and in how many micro-batches each: two, and one of what differs in when samples are drawn.
ON_RANKS = [(case, 2) for case in CASES] + [(case, 1) for case in ("token_mean", "two_updates", "resampled", "rpo")]


class ShortAnswers(NativeEngine):
    """Many tokens end a completion, so that a model with random weights gives some of every length. `ranks` share it.
    It has a copy of the weights, so it may generate in a thread."""

    runs_apart = True

    def __init__(self, ranks: int = 1) -> None:
        super().__init__(64, "float32", "cpu")
        self.ranks = ranks

    @property
    def ranks_per_engine(self) -> int:
        return self.ranks

    def generate(self, requests, sampling):
        return super().generate(requests, replace(sampling, end_ids=tuple(range(50))))


class Letters(BatchReward):
    """The number of lower-case letters; for every third prompt an answer without any cannot be judged."""

    def score_batch(self, requests):
        return [RewardResult(self.count(request)) for request in requests]

    def count(self, request: RewardRequest) -> float | None:
        letters = float(sum(letter.islower() for letter in request.completion))
        return letters if letters or int(request.row["answer"]) % 3 else None


class Rows(L.Callback):
    """Whether a row held several samples, and some of them shared their prompt."""

    together = shared = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.together |= len(batch.tokens.tokens) < batch.samples
        self.shared |= batch.tokens.gather_index is not None


def write_prompts(file: Path, count: int = 20) -> str:
    """Prompts of different lengths."""
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}" + "!" * (n * n * 17 % 151)}], "answer": str(n)}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def run(
    model: str,
    prompts: str,
    case: str,
    accumulate: int = 1,
    ranks: int = 1,
    steps: int = 2,
    root: Path | None = None,
    ranks_per_engine: int = 1,
    strategy: Any = None,
    precision: str = "64-true",
    **more: Any,
) -> dict[str, Any]:
    """Samples, rewards, metrics and final weights of a few optimizer steps in double precision. With a `root` it saves
    a checkpoint there at the end, and goes on from one that it finds. Sizes of rollouts are those of the case and
    `more`.
    """
    method, settings, sizes = CASES[case]
    given: dict[str, Any] = {"prompts_per_rollout": 8, "samples_per_prompt": 3, "max_new_tokens": 6}
    rollout = RolloutConfig(**given | sizes | more)
    engine = ShortAnswers(ranks_per_engine)
    check = LogprobCheck(mean_difference=1.0, max_difference=10.0) if rollout.max_staleness else LogprobCheck()
    data = PromptData(
        *(model, JsonlSource(prompts), [Weighted(Letters())], engine, rollout), logprob_check=check, seed=3
    )
    seen: list[Any] = []
    data.listeners.append(
        lambda stage, samples: seen.extend(
            (s.prompt.row["answer"], s.rollout.token_ids, repr(s.reward)) for s in samples
        )
    )
    # The engine's single precision rounds with its batch; a small epsilon would blow that up where gradients are small.
    optimizer = AdamW(1e-2, eps=1e-2, schedule="constant", warmup_ratio=0.0)
    module = method(model, optimizer, **settings)
    rows = Rows()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy or ("auto" if ranks == 1 else DDPStrategy(process_group_backend="gloo")),
        precision=precision,  # type: ignore[arg-type]
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=root is not None,
        default_root_dir=root,
        callbacks=[rows] if root is None else [rows, Checkpoint(0)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    found = [] if root is None else list_checkpoints(checkpoint_folder(root))
    trainer.fit(module, data, ckpt_path=found[-1] if found else None)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/time/" not in name}
    reshard(module.decoder)
    weights = {name: gathered(parameter).clone() for name, parameter in module.decoder.named_parameters()}
    return {"seen": seen, "metrics": metrics, "weights": weights, "packed": rows.together and rows.shared}


if __name__ == "__main__":
    torch.set_num_threads(1)
    files, begun, out = sys.argv[1:3], Path(sys.argv[3]), Path(sys.argv[4])
    found = {f"{case} {accumulate}": run(*files, case, accumulate, ranks=2) for case, accumulate in ON_RANKS}
    found["resumed"] = run(*files, "two_updates", 2, ranks=2, steps=3, root=begun)
    torch.save(found, out.with_suffix(f".{os.environ['RANK']}"))
