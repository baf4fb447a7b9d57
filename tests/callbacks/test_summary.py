"""The lines at the start of a run: counts by hand, and none of Lightning's."""

from __future__ import annotations

import logging

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary

import lnlit
from lnlit.callbacks.summary import RunSummary, kinds, memory_bytes
from lnlit.specs import NOOP
from lnlit.testing.tiny import mixed_spec, tiny_folder, tiny_spec


def test_layers_by_kind():
    spec = tiny_spec()
    one = kinds(spec)
    assert one.startswith(f"layers: {len(spec.layers)} x ") and "," not in one
    other = spec.replace(layers=(spec.layers[0].replace(ffn=NOOP), *spec.layers[1:]))
    assert kinds(other) == f"layers: 1 x kv2 + noop, {len(spec.layers) - 1} x kv2 + i48"
    many = kinds(mixed_spec().replace(layers=mixed_spec().layers * 3))
    assert sum(int(part.split(" ")[0]) for part in many.removeprefix("layers: ").split(", ")) == 3 * len(
        mixed_spec().layers
    )


def test_memory_of_a_frozen_and_a_trained_matrix():
    frozen = torch.nn.Parameter(torch.zeros(3, 5, dtype=torch.bfloat16), requires_grad=False)
    trained = torch.nn.Parameter(torch.zeros(7))
    assert memory_bytes([frozen, trained], [frozen, trained]) == 30 + 28 + 3 * 28


class Words(lnlit.Source):
    def rows(self, start=0):
        yield from ({"text": f"one two three {n}"} for n in range(start, 40))


@pytest.fixture
def model(tmp_path):
    return str(tiny_folder(tmp_path / "model"))


def start(model, tmp_path, lora=None, **flags):
    data = lnlit.TextData(model, train=Words(), sequence_length=16, micro_batch_size=2)
    method = lnlit.Distill(model, None, lnlit.AdamW(1e-3), kl_weight=0, cosine_weight=0, lm_weight=1, lora=lora)
    trainer = lnlit.trainer(
        max_steps=1, accumulate_grad_batches=3, default_root_dir=str(tmp_path / "run"), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu", **flags,
    )  # fmt: skip
    trainer.fit(method, data)
    return method


def test_what_a_run_says(model, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        method = start(model, tmp_path)
    said = caplog.text
    count = sum(parameter.numel() for parameter in method.parameters())
    assert f"Distill of {model}: {count:,} parameters, all trained" in said
    assert "a step: 96 tokens; micro-batches of 32, 3 accumulated, ranks with rows of their own: 1" in said
    assert f"on cpu, precision 32-true; weights, gradients and moments: {16 * count / 2**30:.2f} GiB a rank" in said
    for noise in ("Trainable params", "GPU available", "TPU available"):
        assert noise not in said


def test_adapters_are_counted(model, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        method = start(model, tmp_path, lora=lnlit.LoRA(rank=2))
    trained = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    assert f"{trained:,} of them trained" in caplog.text


@pytest.mark.parametrize("flags", [{"enable_model_summary": False}, {"callbacks": [ModelSummary()]}])
def test_it_is_switched_off(model, tmp_path, caplog, flags):
    with caplog.at_level(logging.INFO):
        start(model, tmp_path, **flags)
    assert "parameters, all trained" not in caplog.text
    assert ("Trainable params" in caplog.text) == ("callbacks" in flags)


def test_a_module_of_ones_own(caplog):
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, barebones=False)
    assert list(RunSummary().lines(trainer, L.LightningModule())) == ["on cpu, precision 32-true"]
