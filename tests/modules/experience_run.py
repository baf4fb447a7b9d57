"""Short runs of a policy on samples of its own, and all that they leave behind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from lnlit.callbacks.checkpoints import Checkpoint
from lnlit.data.sources import JsonlSource
from lnlit.interfaces import BatchReward, RewardResult
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import PromptData, RolloutConfig, Weighted
from lnlit.rollout.native import NativeEngine


class Letters(BatchReward):
    """The number of lower-case letters; `without` says of which prompts and samples there is no telling."""

    def __init__(self, without=lambda number, row: False) -> None:
        self.without, self.seen = without, 0

    def score_batch(self, requests):
        found = []
        for request in requests:
            known = not self.without(self.seen, int(request.row["answer"]))
            found.append(RewardResult(float(sum(map(str.islower, request.completion))) if known else None))
            self.seen += 1
        return found


def write(file: Path, contents: list[str]) -> str:
    rows = [{"messages": [{"role": "user", "content": text}], "answer": str(n)} for n, text in enumerate(contents)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def rollout(settings: dict[str, Any], max_new_tokens: int) -> RolloutConfig:
    """Small ones, with what `settings` say of them, which is taken out."""
    sizes = {"prompts_per_rollout": 4, "samples_per_prompt": 3, "max_new_tokens": max_new_tokens, "reward_workers": 1}
    given = {name: settings.pop(name) for name in RolloutConfig.__dataclass_fields__ if name in settings}
    return RolloutConfig(**sizes | given)


class Metrics(DummyLogger):
    """What a run logs, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        self.seen.append(dict(metrics))

    def of(self, name: str) -> list[float]:
        return [metrics[name] for metrics in self.seen if name in metrics]


class Run:
    """A run of a few steps and all it left behind."""

    def __init__(self, model, prompts, root, steps=2, method=GRPO, reward=None, ckpt_path=None, **settings) -> None:
        model_settings = settings.pop("learner", {})
        trainer_settings = settings.pop("trainer", {})
        callbacks = [Checkpoint(1)] if settings.pop("save", False) else []
        engine = settings.pop("engine", None) or NativeEngine(64, "float32", "cpu")
        rewards = settings.pop("rewards", None) or [Weighted(reward or Letters(), name="letters")]
        self.data = PromptData(str(model), JsonlSource(prompts), rewards, engine, rollout(settings, 6), **settings)
        self.samples: dict[str, list[Any]] = {"train": [], "val": []}
        self.data.listeners.append(lambda stage, samples: self.samples[stage].append(list(samples)))
        self.module = method(str(model), AdamW(1e-3, schedule="constant", warmup_ratio=0.0), **model_settings)
        self.metrics = Metrics()
        self.trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            default_root_dir=root,
            logger=self.metrics,
            log_every_n_steps=1,
            callbacks=callbacks,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            **trainer_settings,
        )
        self.ckpt_path = ckpt_path

    def fit(self) -> Run:
        self.trainer.fit(self.module, self.data, ckpt_path=self.ckpt_path)
        return self

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.module.decoder.named_parameters()}

    def drawn(self, stage: str = "train") -> list[Any]:
        return [
            [(s.prompt.row["answer"], s.rollout.token_ids, repr(s.reward)) for s in samples]
            for samples in self.samples[stage]
        ]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def finite(weights: dict[str, torch.Tensor]) -> bool:
    return all(bool(weight.isfinite().all()) for weight in weights.values())


class Unsure(NativeEngine):
    """Does not know the probabilities of some completions."""

    def __init__(self, *args, every: int) -> None:
        super().__init__(*args)
        self.every = every

    def generate(self, requests, sampling):
        found = super().generate(requests, sampling)
        return [
            replace(rollout, logprobs=(math.nan,) * len(rollout.token_ids)) if number % self.every == 0 else rollout
            for number, rollout in enumerate(found)
        ]
