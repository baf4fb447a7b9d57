"""What `ExportModel` writes beside the weights."""

from __future__ import annotations

import json
from dataclasses import replace

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import load_file

from lnlit.callbacks.export import ExportModel
from lnlit.checkpoint.convert import export_model
from lnlit.checkpoint.folder import read_provenance
from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.reward_model import RewardModel
from lnlit.modules.sft import SFT
from lnlit.stages.card import card
from lnlit.testing.tiny import mixed_spec, tiny_folder


class Unmeasured(L.Callback):
    """Logs a mean of nothing, as the length of finished completions is where none finished."""

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        pl_module.log("train/nothing", float("nan"))


def train(tmp_path, model: str, callbacks: list[L.Callback], root=None, **settings) -> SFT:
    """The method after a step on one row."""
    rows = tmp_path / "rows.jsonl"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text(json.dumps({"messages": chat}) + "\n")
    method = SFT(model, AdamW(1e-3, schedule="constant", warmup_ratio=0.0), **settings)
    L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=root,
    ).fit(method, ChatData(model, JsonlSource(str(rows)), sequence_length=64, micro_batch_size=1))
    return method


def test_a_metric_that_is_no_number_is_left_out(tmp_path):
    train(tmp_path, str(tiny_folder(tmp_path / "model")), [Unmeasured(), ExportModel(str(tmp_path / "out"))])
    metrics = read_provenance(tmp_path / "out")["metrics"]
    assert "train/loss" in metrics
    assert "train/nothing" not in metrics


def test_a_folder_made_of_a_checkpoint_says_of_the_run_what_the_callback_would_have(tmp_path):
    class Saves(L.Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            (tmp_path / "config.yaml").write_text(
                yaml.safe_dump({"model": {"api_key": "x", "steps": 1}, "trainer": {}})
            )
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    model = str(tiny_folder(tmp_path / "model"))
    adapter, out = str(tmp_path / "adapter"), ExportModel(str(tmp_path / "out"))
    lora = LoRA(rank=2)
    train(tmp_path, model, [ExportModel(adapter, adapter=True)], lora=lora)
    train(tmp_path, model, [Saves(), out], lora=replace(lora, adapter=adapter), root=tmp_path)
    written, found = (
        read_provenance(tmp_path / "out"),
        read_provenance(export_model(tmp_path / "last.ckpt", tmp_path / "b")),
    )
    assert found["parent"] == str(tmp_path / "last.ckpt")
    del written["metrics"], written["thinking"], written["lnlit"]
    assert found["parent_provenance"] == written
    assert written["method"] == "SFT" and written["from_adapter"]["adapter"] == adapter and written["steps"] == 1
    assert written["recipe"] == {"model": {"api_key": "(left out)", "steps": 1}}
    assert (
        " Trained by SFT from model, going on from the adapter adapter, for 1 steps" in card(tmp_path / "b").read_text()
    )


@pytest.mark.parametrize("fused", [False, True], ids=["each", "fused"])
def test_a_run_goes_on_from_the_adapters_that_another_wrote(tmp_path, fused, capsys):
    """The second run starts with the first one's weights, to the bit, and PEFT's arithmetic gives what it ends with."""
    model = str(tiny_folder(tmp_path / "model"))
    lora = LoRA(rank=2, alpha=6.0, targets=("q_proj", "gate_up_proj" if fused else "gate_proj"))
    settings = {"runtime": Runtime(fuse_gate_up=fused)}
    first = train(tmp_path, model, [ExportModel(str(tmp_path / "a"), adapter=True)], lora=lora, **settings)
    assert f"puts it on {model}" in capsys.readouterr().err
    start = {}

    class KeepsStart(L.Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            start.update({name: tensor.clone() for name, tensor in pl_module.decoder.state_dict().items()})

    lora = replace(lora, adapter=str(tmp_path / "a"))
    callbacks = [KeepsStart(), ExportModel(str(tmp_path / "b"), adapter=True), ExportModel(str(tmp_path / "whole"))]
    train(tmp_path, model, callbacks, lora=lora, **settings)
    assert all(torch.equal(tensor, start[name]) for name, tensor in first.decoder.state_dict().items())
    base, merged, factors = (
        load_file(tmp_path / folder / name)
        for folder, name in (
            ("model", "model.safetensors"),
            ("whole", "model.safetensors"),
            ("b", "adapter_model.safetensors"),
        )
    )
    for name, weight in base.items():
        a, b = (factors.get(f"base_model.model.{name.removesuffix('weight')}lora_{factor}.weight") for factor in "AB")
        expected = weight if a is None else weight + 6.0 / 2 * b @ a
        assert (expected - merged[name]).abs().max() <= 1e-6, name
    assert any(not torch.equal(weight, merged[name]) for name, weight in base.items())


def test_an_adapter_is_asked_only_of_a_run_that_has_nothing_else(tmp_path):
    model = str(tiny_folder(tmp_path / "model"))
    with pytest.raises(UserError, match=r"ExportModel.adapter: this run trains all weights; set model.lora"):
        train(tmp_path, model, [ExportModel(str(tmp_path / "out"), adapter=True)])
    trainer = L.Trainer(accelerator="cpu", logger=False, barebones=False, max_steps=1, enable_checkpointing=False)
    callback = ExportModel(str(tmp_path / "out"), adapter=True)
    with pytest.raises(UserError, match=r"ExportModel.adapter: RewardModel trains a head too, which no adapter holds"):
        callback.setup(trainer, RewardModel(model, AdamW(1e-3), lora=LoRA(rank=2)), "fit")
    mixed = str(tiny_folder(tmp_path / "mixed", mixed_spec().replace(context_length=100)))
    callback.setup(trainer, SFT(mixed, AdamW(1e-3), lora=LoRA(rank=2)), "fit")
    with pytest.raises(UserError, match=r"out: .*model is read by this very command"):
        ExportModel(model, overwrite=True, adapter=True).setup(trainer, SFT(model, AdamW(1e-3), lora=LoRA()), "fit")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(UserError, match="out: exists already"):
        callback.setup(trainer, SFT(model, AdamW(1e-3), lora=LoRA()), "fit")


def test_the_model_that_training_starts_from_is_not_overwritten(tmp_path):
    model = str(tiny_folder(tmp_path / "model"))
    trainer = L.Trainer(accelerator="cpu", logger=False, barebones=False, max_steps=1, enable_checkpointing=False)
    callback = ExportModel(model, overwrite=True)
    with pytest.raises(UserError, match=r"model is read by this very command, and would be lost"):
        callback.setup(trainer, SFT(model, AdamW(1e-3)), "fit")
