"""`lnlit plugins new` writes a package of each kind that works: found by its entry point, and true to its contract."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import pytest

import lnlit as front
from lnlit import registry
from lnlit.errors import UserError


@pytest.mark.parametrize("kind", registry.kinds())
def test_a_new_part_passes_its_contract(kind, lnlit, installed, tmp_path_factory, tmp_path):
    code, out, err = lnlit("plugins", "new", kind, f"my_{kind}")
    folder = Path(out.strip())
    assert code == 0 and folder.name == f"lnlit-my-{kind.replace('_', '-')}", err
    assert "example" not in "".join(file.read_text() for file in folder.rglob("*.py")).lower()
    installed(folder)
    entry = registry.find(kind, f"my_{kind}")
    assert entry.distribution == folder.name and inspect.getdoc(entry.load())
    tests = runpy.run_path(str(folder / "tests" / f"test_my_{kind}.py"))
    for name, test in tests.items():
        if name.startswith("test_"):
            test(
                **{"tmp_path": tmp_path_factory.mktemp("test")}
                if "tmp_path" in inspect.signature(test).parameters
                else {}
            )


def test_a_name_and_a_folder_that_cannot_be(lnlit, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, told in {
        ("reward", "no-name"): "error: name: got 'no-name'; expected letters, digits and underscores",
        ("reward", "__"): "error: name: got '__'; expected letters, digits and underscores",
        ("reward", "vllm"): "error: name: 'vllm' makes the distribution lnlit-vllm, which exists already",
        ("algorithm", "loss"): "error: name: 'loss' makes the class Loss, a name that its file uses.",
        ("source", "user_error"): "error: name: 'user_error' makes the class UserError,",
        ("reward", "format"): "error: reward 'format' exists already; choose another name.",
        ("rewrad", "mine"): "error: unknown kind 'rewrad'. Did you mean 'reward'?",
        ("reward", "mine", "full"): f"error: {tmp_path}/full: is there already and not empty.",
    }.items():
        code, _, err = lnlit("plugins", "new", *arguments)
        assert code == 2 and err.startswith(told) and err.count("\n") == 1, err
    assert not (tmp_path / "lnlit-mine").exists()


def test_python_writes_what_the_command_writes(lnlit, tmp_path):
    written = front.plugins_new("ffn", "gated", str(tmp_path / "one"))
    assert written == tmp_path / "one" and lnlit("plugins", "new", "ffn", "gated", "two")[0] == 0
    one, two = (
        {file.relative_to(root): file.read_text() for file in root.rglob("*") if file.is_file()}
        for root in (written, tmp_path / "two")
    )
    assert one == two and len(one) == 4
    with pytest.raises(UserError, match="not empty"):
        front.plugins_new("ffn", "gated", written)
