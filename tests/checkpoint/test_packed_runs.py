"""Checkpoints in which packed weights have their rows in another order, as an earlier version wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lnlit.callbacks.checkpoints import Checkpoint
from lnlit.checkpoint.lightning import LightningCheckpoint
from lnlit.data.sources import JsonlSource
from lnlit.data.text_data import TextData
from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.modules.lit_model import Runtime
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.specs import ModelSpec
from lnlit.testing.tiny import tiny_folder


def fit(folder: Path, checkpoint: Path | None = None) -> Path:
    """Trains a model that keeps gate and up as one matrix; the checkpoint of it."""
    optimizer = AdamW(1e-3, schedule="constant", warmup_ratio=0.0)
    module = SFT(str(folder / "model"), optimizer=optimizer, runtime=Runtime(fuse_gate_up=True))
    flags: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, default_root_dir=folder, callbacks=[Checkpoint(every_n_steps=0)], **flags
    )
    data = TextData(str(folder / "model"), JsonlSource(str(folder / "texts.jsonl")), 64, 2)
    trainer.fit(module, data, ckpt_path=checkpoint)
    return folder / "checkpoints" / "step-1.ckpt"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint, and the same as an earlier version wrote it: all gate rows above all up rows, and no word of it."""
    folder = tmp_path_factory.mktemp("packed")
    tiny_folder(folder / "model")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": f"make {n} " * 9}) + "\n" for n in range(40)))
    file = fit(folder)
    held = torch.load(file, weights_only=True)
    decoder, state = build_decoder(ModelSpec.from_json(held["lnlit"]["spec"])), held["state_dict"]
    packed = decoder.packed_weights()
    assert packed and {stack.runs for stack in packed.values()} == {16}
    for name, stack in packed.items():
        state[f"decoder.{name}"] = torch.cat(stack.split(state[f"decoder.{name}"]))
    del held["lnlit"]["packed_runs"]
    old = folder / "old.ckpt"
    torch.save(held, old)
    return file, old


def test_it_is_read_with_the_same_weights(saved):
    new, old = (dict(LightningCheckpoint().weights(file)) for file in saved)
    assert new.keys() == old.keys() and any("gate_proj" in name for name in new)
    assert all(torch.equal(tensor, old[name]) for name, tensor in new.items())


def test_no_run_goes_on_from_it(saved):
    _, old = saved
    with pytest.raises(UserError, match=r"layers\.0\.mlp has its packed weights in 1 runs .* has them in 16"):
        fit(old.parent, old)
