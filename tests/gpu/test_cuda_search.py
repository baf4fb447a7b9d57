"""Distillation, measuring and scoring on a GPU, on a tiny model. Run with: python -m pytest tests/gpu"""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch

from lnlit.data.sources import TextFileSource
from lnlit.data.text import TextSample
from lnlit.data.text_data import TextData
from lnlit.errors import UserError
from lnlit.interfaces import Workload
from lnlit.modules.block_distill import BlockDistill
from lnlit.modules.distill import Distill
from lnlit.modules.optim import AdamW
from lnlit.objectives.distill import linear_distillation
from lnlit.search.library import Library
from lnlit.search.native_meter import NativeMeter
from lnlit.search.score import read_scores
from lnlit.specs import NOOP
from lnlit.stages import score as score_stage
from lnlit.testing.tiny import mixed_spec, swiglu, tiny_folder, tiny_spec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
OPTIMIZER = AdamW(3e-3, schedule="constant", warmup_ratio=0.0)


@pytest.fixture
def child(tmp_path) -> str:
    """The tiny parent's, one FFN narrowed and one attention gone."""
    first, second = tiny_spec().layers
    layers = (first.replace(ffn=swiglu(24)), second.replace(attention=NOOP))
    return str(tiny_folder(tmp_path / "child", tiny_spec().replace(layers=layers)))


def fit(method: L.LightningModule, text: Path, tokenizer: Path, root: Path, steps: int, **settings) -> L.Trainer:
    source = TextFileSource(str(text))
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=steps,
        default_root_dir=root,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(method, TextData(str(tokenizer), source, 64, 2, val=source))
    return trainer


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_distillation_brings_a_child_nearer_to_its_teacher(child, tiny_parent, text_file, tmp_path, precision):
    def divergence(steps: int) -> float:
        settings = {"precision": precision, "limit_val_batches": 4, "val_check_interval": steps}
        method = Distill(child, str(tiny_parent), OPTIMIZER)
        metrics = fit(method, text_file, tiny_parent, tmp_path, steps, **settings).callback_metrics
        assert math.isfinite(metrics["train/grad_norm"]) and metrics["val/cosine"] > 0
        return float(metrics["val/kl"])

    assert 0 < divergence(30) < 0.8 * divergence(1)


def test_a_divergence_without_gradients_is_not_rounded_to_bf16():
    """And a training step's, of the same numbers, is."""
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, weight = (torch.randn(n, 64, device="cuda", generator=generator).bfloat16() for n in (300, 500))
    student = hidden + (torch.randn(300, 64, device="cuda", generator=generator) / 50).bfloat16()
    labels = torch.zeros(300, dtype=torch.long, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        rounded = linear_distillation(student.float(), weight.float(), hidden, weight, labels).kl
        with torch.no_grad():
            found = linear_distillation(student.float(), weight.float(), hidden, weight, labels).kl
    p, q = ((x.double() @ weight.double().T).log_softmax(-1) for x in (hidden, student))
    expected = (p.exp() * (p - q)).sum().item()
    assert found.item() == pytest.approx(expected, rel=1e-3)
    assert abs(rounded.item() - expected) > abs(found.item() - expected)


def test_block_distillation_trains_every_candidate(built_library, tiny_parent, text_file, tmp_path):
    method = BlockDistill(str(tiny_parent), str(built_library), str(tmp_path / "out"), OPTIMIZER)
    fit(method, text_file, tiny_parent, tmp_path, 20, precision="bf16-mixed", limit_val_batches=0)
    for layer in Library.open(tmp_path / "out").layers:
        for variant in (*layer.attention.values(), *layer.ffn.values()):
            if variant.parameters and not variant.parent:
                assert variant.trained_error is not None and variant.init_error is not None
                assert variant.trained_error < variant.init_error


def test_the_native_meter_refuses_a_gpu():
    with pytest.raises(UserError, match="the native meter cannot measure a GPU"):
        NativeMeter().measure(mixed_spec(), Path(), [Workload(1, 5, 2)], dtype="bfloat16", samples=2)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.2)])
def test_scores_are_those_of_the_cpu(built_library, tiny_parent, documents, tmp_path, monkeypatch, dtype, tolerance):
    data = TextSample(TextFileSource(documents), rows=4, length=64)

    def scores(name: str, dtype: str) -> list[float]:
        file = str(tmp_path / f"{name}.jsonl")
        score_stage.score(str(tiny_parent), str(built_library), data, file, dtype=dtype)  # type: ignore[arg-type]
        table = read_scores(file).table
        return [value for layer in table for slot in layer.values() for value in slot.values()]

    found = scores("gpu", dtype)
    monkeypatch.setattr(score_stage, "torch_device", lambda: "cpu")
    assert found == pytest.approx(scores("cpu", "float32"), rel=tolerance, abs=tolerance / 10)
