"""LoRA on a base in bf16: the same step as on one in fp32 under mixed precision, in half of the memory."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import torch

from lnlit.callbacks import Checkpoint
from lnlit.checkpoint.formats import open_checkpoint
from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.testing.tiny import mixed_spec, tiny_folder

TARGETS = ("q_proj", "v_proj", "down_proj")


class Recorder(L.Callback):
    """Gives B values, or A would have no gradient, and keeps each step's loss and gradients."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer, pl_module) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in pl_module.decoder.named_parameters():
            if "lora_b" in name and not parameter.any():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1

    def on_gradient_norm(self, trainer, pl_module, norm: float) -> bool:
        named = pl_module.decoder.named_parameters()
        found = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}
        self.steps.append({"loss": trainer.callback_metrics["train/loss"].clone(), **found})
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_folder(folder / "model", mixed_spec())
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * (1 + i % 9)}]}
        for i in range(20)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(
    folder: Path, root: Path, base_dtype, steps: int = 3, precision: str = "bf16-mixed", resume=None, **settings
) -> tuple[SFT, list]:
    L.seed_everything(1)
    recorder = Recorder()
    lora = LoRA(rank=4, alpha=8.0, targets=TARGETS, base_dtype=base_dtype)
    method = SFT(str(folder / "model"), AdamW(1e-2, schedule="constant", warmup_ratio=0.0), lora=lora, **settings)
    L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        precision=precision,
        gradient_clip_val=1.0,
        default_root_dir=root,
        callbacks=[recorder, Checkpoint(every_n_steps=1, keep=3)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(method, ChatData(str(folder / "model"), JsonlSource(str(folder / "rows.jsonl")), 96, 1), ckpt_path=resume)
    return method, recorder.steps


def test_a_base_in_bf16_gives_the_same_steps_and_goes_on(folder, tmp_path):
    _, single = train(folder, tmp_path / "single", None)
    method, half = train(folder, tmp_path / "half", "bfloat16")
    assert len(single) == len(half) == 3
    for one, other in zip(single, half, strict=True):
        assert one.keys() == other.keys() and len(one) > 1
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    dtypes = {name: parameter.dtype for name, parameter in method.decoder.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}
    # a run that is resumed goes the same way, and its checkpoint holds the base in bf16
    saved = tmp_path / "half" / "checkpoints" / "step-2.ckpt"
    _, resumed = train(folder, tmp_path / "resumed", "bfloat16", resume=saved)
    assert all(torch.equal(value, half[-1][name]) for name, value in resumed[-1].items())
    assert {tensor.dtype for _, tensor in open_checkpoint(saved).weights(saved)} == {torch.bfloat16}
    with pytest.raises(UserError, match=r"ckpt_path: the checkpoint was trained with lora .*'base_dtype': 'bfloat16'"):
        train(folder, tmp_path / "other", None, resume=saved)


def test_a_base_in_bf16_is_refused_where_it_would_change_the_step(folder, tmp_path):
    with pytest.raises(UserError, match=r"lora.base_dtype: bfloat16 .* trainer.precision is 32-true. Set .*bf16-mixed"):
        train(folder, tmp_path, "bfloat16", precision="32-true")
    with pytest.raises(UserError, match=r"lora.base_dtype: goes with no runtime.precision: fp8"):
        train(folder, tmp_path, "bfloat16", runtime=Runtime(precision="fp8"))
