"""The digest of a model's weights: any changed byte changes it, and a large file is read once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lnlit.checkpoint import fingerprint
from lnlit.checkpoint.fingerprint import weights_digest
from lnlit.testing.tiny import tiny_folder


@pytest.fixture
def reads(tmp_path, monkeypatch) -> list[str]:
    """The files that are read, of which all count as large and as unchanged for long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(fingerprint, "_SETTLED_S", -1)
    found: list[str] = []
    digest = hashlib.file_digest

    def noted(stream, name):
        found.append(stream.name)
        return digest(stream, name)

    monkeypatch.setattr(fingerprint.hashlib, "file_digest", noted)
    return found


def change(file: Path) -> None:
    """Another byte in the same place, at the same time of modification."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_is_read_once_and_again_after_any_change(tmp_path, reads):
    model = tiny_folder(tmp_path / "model")
    first = weights_digest(str(model))
    assert weights_digest(str(model)) == first and len(reads) == 1
    change(model / "model.safetensors")
    assert weights_digest(str(model)) != first and len(reads) == 2
    change(model / "model.safetensors")
    assert weights_digest(str(model)) == first and len(reads) == 3
    (model / "model.safetensors").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(model / "model.safetensors")
    assert weights_digest(str(model)) == first


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense"])
def test_a_damaged_cache_is_no_cache(tmp_path, reads, text):
    model = tiny_folder(tmp_path / "model")
    first = weights_digest(str(model))
    (kept,) = (tmp_path / "cache/lnlit/digests").iterdir()
    kept.write_text(text)
    assert weights_digest(str(model)) == first and len(reads) == 2
    assert weights_digest(str(model)) == first and len(reads) == 2


def test_what_was_changed_a_moment_ago_is_not_kept(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(fingerprint, "_SETTLED_S", 60)
    model = tiny_folder(tmp_path / "model")
    assert weights_digest(str(model)) == weights_digest(str(model)) and len(reads) == 2


def test_a_cache_that_cannot_be_written_is_none(tmp_path, reads, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    model = tiny_folder(tmp_path / "model")
    assert weights_digest(str(model)) == weights_digest(str(model)) and len(reads) == 2
