"""Every method trains every tensor of a mixed model, however the model runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from experience_run import Letters
from safetensors.torch import save_file

from lnlit.data.preference import PreferenceData
from lnlit.data.sources import JsonlSource
from lnlit.data.text_data import TextData
from lnlit.models.lora import LoRA
from lnlit.models.reward_head import FILE
from lnlit.modules.distill import Distill
from lnlit.modules.grpo import GRPO
from lnlit.modules.lit_model import Runtime
from lnlit.modules.on_policy_distill import OnPolicyDistill
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import LogprobCheck, PromptData, RolloutConfig, Weighted
from lnlit.modules.reward_model import RewardModel
from lnlit.modules.rloo import RLOO
from lnlit.modules.rpo import RPO
from lnlit.modules.sft import SFT
from lnlit.rollout.native import NativeEngine
from lnlit.testing.tiny import mixed_spec, tiny_folder

ALL = {"fuse_gate_up": True, "activation_checkpointing": True, "precision": "fp8"}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj", "linear_attn")
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fused": {"runtime": Runtime(fuse_gate_up=True)},
    "checkpointing": {"runtime": Runtime(activation_checkpointing=True)},
    "fp8-tensorwise": {"runtime": Runtime(precision="fp8")},
    "fp8-rowwise": {"runtime": Runtime(precision="fp8", fp8_recipe="rowwise")},
    "all-tensorwise": {"runtime": Runtime(**ALL)},
    "all-rowwise": {"runtime": Runtime(**ALL, fp8_recipe="rowwise")},
    "lora": {"lora": LoRA(rank=4, targets=(*LINEARS, "linear_mlp"))},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A mixed model, one to learn from, and rows of every kind."""
    folder = tmp_path_factory.mktemp("methods")
    tiny_folder(folder / "model", mixed_spec())
    tiny_folder(folder / "teacher", mixed_spec(), seed=1)
    save_file({"weight": torch.ones(1, 32)}, folder / "model" / FILE)  # a reward model's, not zero as a new one is
    words = ["one", "two", "three", "four", "five"]
    texts = [{"text": " ".join(words[: n % 5 + 1]) + f" make {n}."} for n in range(40)]
    asked = [{"role": "user", "content": f"say {word}"} for word in words]
    prompts = [{"messages": [turn], "answer": str(number)} for number, turn in enumerate(asked)]
    pairs = [{"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": "no, never"} for n in range(8)]
    for name, rows in {"texts": texts, "prompts": prompts, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def texts(folder: Path) -> L.LightningDataModule:
    return TextData(str(folder / "model"), JsonlSource(str(folder / "texts.jsonl")), 64, 2)


def pairs(folder: Path) -> L.LightningDataModule:
    return PreferenceData(str(folder / "model"), JsonlSource(str(folder / "pairs.jsonl")), 128, 2)


def samples(folder: Path) -> L.LightningDataModule:
    return PromptData(
        *(str(folder / "model"), JsonlSource(str(folder / "prompts.jsonl")), [Weighted(Letters())]),
        engine=NativeEngine(64, "float32", "cpu"),
        rollout=RolloutConfig(3, 2, 6, reward_workers=1),
        logprob_check=LogprobCheck(max_difference=20.0, mean_difference=20.0),  # the engine samples without float8
    )


METHODS = {
    "SFT": (SFT, texts),
    "CPT": (partial(Distill, teacher=None, kl_weight=0.0, cosine_weight=0.0, lm_weight=1.0), texts),
    "Distill": (Distill, texts),
    "RewardModel": (RewardModel, pairs),
    "RPO": (partial(RPO, beta=0.1), samples),
    "OnPolicyDistill": (OnPolicyDistill, samples),
    "GRPO": (GRPO, samples),
    "RLOO": (RLOO, samples),
}


class Trained(L.Callback):
    """Which tensors a gradient has reached, finite and not zero."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_gradient_norm(self, trainer: L.Trainer, pl_module: Any, norm: float) -> bool:
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any():
                self.names.add(name)
        return False


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_is_trained(folder, method, run):
    """In two steps: one factor of an adapter begins at zero, which lets nothing through to the other."""
    make, data = METHODS[method]
    settings = {"teacher": str(folder / "teacher")} if "Distill" in method else {}
    module = make(
        str(folder / "model"), optimizer=AdamW(1e-3, schedule="constant", warmup_ratio=0.0), **settings, **RUNS[run]
    )
    trained = Trained()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        callbacks=[trained],
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(module, data(folder))
    expected = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained.names == expected
    adapted = {name for name in expected if "lora_" in name}
    assert adapted == (expected - {"head.weight"} if run == "lora" else set())
