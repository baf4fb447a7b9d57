"""Reinforcement learning on a GPU. Run with: python -m pytest tests/gpu"""

from __future__ import annotations

import json

import lightning as L
import pytest
import torch

from lnlit import registry
from lnlit.callbacks.memory import MemoryRecorder
from lnlit.data.sources import JsonlSource
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import LogprobCheck, PromptData, RolloutConfig, Weighted
from lnlit.rewards.format import FormatReward
from lnlit.rollout.native import NativeEngine
from lnlit.specs import BlockSpec, PartSpec
from lnlit.testing.rollout_contract import check_rollout_engine
from lnlit.testing.tiny import mixed_spec, tiny_folder, tiny_spec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_the_native_engine_keeps_its_contract():
    check_rollout_engine(lambda: NativeEngine(8, "float32", "cuda"), mixed_spec(), tolerance=1e-3)


@pytest.mark.parametrize("engine", ["native", "vllm"])
def test_a_policy_learns_beside_its_engine(tmp_path, engine):
    """The engine is asleep between rollouts; it has the trainer's weights after each sync, or the run stops."""
    if engine not in registry.names("rollout"):
        pytest.skip("plugin not installed")
    # The kernels that vLLM has for float32 on a GPU want heads of 16 or 32 and more.
    heads = PartSpec("gqa", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32})
    spec = tiny_spec()
    model = str(tiny_folder(tmp_path / "model", spec.replace(layers=(BlockSpec(heads, spec.layers[0].ffn),) * 2)))
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": f"say {n}"}]}) + "\n" for n in range(8))
    )
    memory = MemoryRecorder()
    data = PromptData(
        model,
        JsonlSource(str(rows)),
        [Weighted(FormatReward("on"))],
        registry.build("rollout", engine, dtype="float32"),
        RolloutConfig(4, 4, max_new_tokens=8, sleep_engine_while_training=True),
        logprob_check=LogprobCheck(max_difference=1e-2),
    )
    L.Trainer(
        accelerator="gpu",
        devices=1,
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[memory],
    ).fit(GRPO(model, AdamW(1e-3, schedule="constant", warmup_ratio=0.0)), data)
    assert data.rollouts == 4
