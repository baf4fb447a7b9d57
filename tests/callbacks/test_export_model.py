"""What `ExportModel` writes beside the weights."""

from __future__ import annotations

import json

import lightning as L
import pytest

from lnlit.callbacks.export import ExportModel
from lnlit.checkpoint.folder import read_provenance
from lnlit.data.datamodule import ChatData
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.testing.tiny import tiny_folder


class Unmeasured(L.Callback):
    """Logs a mean of nothing, as the length of finished completions is where none finished."""

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        pl_module.log("train/nothing", float("nan"))


def test_a_metric_that_is_no_number_is_left_out(tmp_path):
    rows = tmp_path / "rows.jsonl"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text(json.dumps({"messages": chat}) + "\n")
    model = str(tiny_folder(tmp_path / "model"))
    data = ChatData(model, JsonlSource(str(rows)), sequence_length=64, micro_batch_size=1)
    L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Unmeasured(), ExportModel(str(tmp_path / "out"))],
    ).fit(SFT(model, AdamW(1e-3, schedule="constant", warmup_ratio=0.0)), data)
    metrics = read_provenance(tmp_path / "out")["metrics"]
    assert "train/loss" in metrics
    assert "train/nothing" not in metrics


def test_the_model_that_training_starts_from_is_not_overwritten(tmp_path):
    model = str(tiny_folder(tmp_path / "model"))
    trainer = L.Trainer(accelerator="cpu", logger=False, barebones=False, max_steps=1, enable_checkpointing=False)
    callback = ExportModel(model, overwrite=True)
    with pytest.raises(UserError, match=r"model is read by this very command, and would be lost"):
        callback.setup(trainer, SFT(model, AdamW(1e-3)), "fit")
