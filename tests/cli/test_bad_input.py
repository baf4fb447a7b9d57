"""Models and data that cannot work end a run in one clear line, before or instead of training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def refused(lnlit, config):
    """`refused(message, *options)`: the run ends with exit code 2 and that message in its last line."""

    def check(message: str, *options: object) -> None:
        code, _, err = lnlit("fit", "--config", config(), *options)
        last = err.splitlines()[-1]
        assert code == 2 and last.startswith("error: ") and message in last and "Traceback" not in err, err

    return check


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return shutil.copytree(tiny_model, tmp_path / "spoilt")


def rewrite_ffn(model: Path, **changes: object) -> None:
    record = json.loads((model / "lnlit.json").read_text())
    record["spec"]["layers"][1]["ffn"] |= changes
    (model / "lnlit.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"args": {"intermediat_size": 48}},
            "layers[1].ffn.args: unknown key 'intermediat_size'. Did you mean 'intermediate_size'? Allowed: ",
        ),
        ({"type": "swigul"}, "layers[1].ffn.type: unknown ffn 'swigul'. Did you mean 'swiglu'? Allowed: "),
        ({"args": {"intermediate_size": "wide"}}, "layers[1].ffn.args.intermediate_size: expected int, got 'wide'"),
        ({"args": {"intermediate_size": 47}}, "layers.1.mlp.gate_proj.weight has shape [48, 32]"),
        ({"arg": {}}, "layers[1].ffn: unknown key 'arg'. Did you mean 'args'?"),
    ],
)
def test_a_spec_that_does_not_fit(refused, model, changes, message):
    rewrite_ffn(model, **changes)
    refused(message, "--model.model", model)


def test_truncated_weights(refused, model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused("not a complete safetensors file", "--model.model", model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train: no usable row"),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "rows.jsonl:1: no assistant turn"),
        ('{"messages": \n', "rows.jsonl:1: "),
    ],
)
def test_rows_that_teach_nothing(refused, tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    refused(message, "--data.train.paths", tmp_path / "rows.jsonl")


def test_sequences_longer_than_the_context(refused):
    refused("sequence_length 4096 is longer than the model's context of 128", "--data.sequence_length", 4096)


def test_an_unknown_kernel(refused):
    refused("'sdap'. Did you mean 'sdpa'? Allowed: ", "--model.runtime.attention_kernel", "sdap")


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
ODD = {"nested": "[" * 5000, "circle": "a: &a\n  b: *a\n", "null": "\x00", "list": "- " * 3000 + "a", "laughs": LAUGHS}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_a_configuration_that_is_no_yaml_of_ours_is_one_line(lnlit, tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    code, _, err = lnlit("fit", "--config", "odd.yaml")
    assert code == 2 and err.startswith("error: odd.yaml"), err[:500]
    assert len(err) < 400


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_configuration_that_cannot_be_read_is_one_line(lnlit):
    code, _, err = lnlit("search", "solve", "--config", "/proc/self/mem")
    assert code == 2 and err.startswith("error: /proc/self/mem: cannot be read"), err[:500]
    for call in (("export", "/proc/self/mem", "out"), ("import", "/proc/self/mem", "out")):
        code, _, err = lnlit(*call)
        assert code == 2 and err.count("\n") == 1, err[:500]
