"""A checkpoint's fingerprint follows its weights, not its place."""

from __future__ import annotations

import shutil

import pytest

from lnlit.checkpoint.fingerprint import fingerprint, model_source
from lnlit.testing.tiny import tiny_folder


@pytest.fixture
def model(tmp_path):
    return tiny_folder(tmp_path / "model")


def test_a_copy_has_the_same_and_other_weights_another(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "notes.txt").write_text("moved")
    assert fingerprint(str(copy)) == fingerprint(str(model))
    assert fingerprint(str(tiny_folder(tmp_path / "other", seed=1))) != fingerprint(str(model))


@pytest.mark.parametrize("damage", ["cut", "change", "shard"])
def test_it_sees_size_bytes_and_shards(model, damage):
    before, file = fingerprint(str(model)), model / "model.safetensors"
    content = file.read_bytes()
    if damage == "shard":
        (model / "model-2.safetensors").write_bytes(content)
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] if damage == "cut" else content[:middle] + b"xxxx" + content[middle + 4 :])
    assert fingerprint(str(model)) != before


def test_an_origin_is_absolute(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_source("model") == model_source(str(model)) == str(model.resolve())
