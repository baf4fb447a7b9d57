"""Texts and pictures reach every logger, or a file beside its log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from lightning.pytorch import loggers
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lnlit.callbacks.boards import log_pictures, log_text
from lnlit.report.picture import Picture, png
from lnlit.report.theme import new_figure

TEXT = "**2 + 2**\n\n```\n4\n```"
PICTURE = Picture("empty", "", "", lambda theme: new_figure(2, 1))


def send(logger) -> None:
    log_text([logger], "samples/0", TEXT, 3)
    log_pictures([logger], "rollouts", [PICTURE], 3)
    logger.save()
    logger.finalize("success")


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.rglob(f"*{suffix}") if file.is_file())


def test_tensorboard(tmp_path):
    send(loggers.TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0")).Reload()
    (text,) = events.Tensors("samples/0/text_summary")
    (picture,) = events.Images("rollouts/empty")
    assert text.tensor_proto.string_val == [TEXT.encode()] and text.step == picture.step == 3
    assert (picture.height, picture.width) == (150, 300)


def test_csv_gets_files_beside_its_log_and_says_so_once(tmp_path, caplog):
    with caplog.at_level("INFO"):
        send(loggers.CSVLogger(tmp_path))
    media = tmp_path / "lightning_logs" / "version_0" / "media"
    assert (media / "samples" / "0" / "step-3.md").read_text() == TEXT
    assert (media / "rollouts" / "empty" / "step-3.png").read_bytes() == png(PICTURE.draw)
    assert caplog.text.count("CSVLogger holds no texts and pictures; they go to") == 1


def test_mlflow_in_a_file_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    send(loggers.MLFlowLogger(tracking_uri=f"file:{tmp_path}"))
    (text,), (picture,) = files(tmp_path, ".md"), files(tmp_path, ".png")
    assert text.read_text() == TEXT and text.parts[-3:] == ("samples", "0", "step-3.md")
    assert imread(picture).shape[:2] == imread(io.BytesIO(png(PICTURE.draw))).shape[:2]


def test_weights_and_biases_offline(tmp_path):
    wandb = pytest.importorskip("wandb")
    logger = loggers.WandbLogger(save_dir=tmp_path, offline=True, settings=wandb.Settings(silent=True))
    send(logger)
    wandb.finish()
    (picture,) = files(tmp_path, ".png")
    assert imread(picture).shape[:2] == (150, 300) and "rollouts" in str(picture)
    assert any(TEXT.partition("\n")[0] in file.read_text() for file in files(tmp_path, ".table.json"))
