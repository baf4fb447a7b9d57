"""`lnlit env` says what is installed, and no secret."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version

import torch

from lnlit import registry


def test_it_says_what_is_there_and_no_secret(lnlit, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, out, _ = lnlit("env", "--json")
    found = json.loads(out)
    assert code == 0 and "hf_abc" not in out
    assert found["variables"]["HF_TOKEN"] == "(set)" and found["variables"]["OMP_NUM_THREADS"] == "1"
    assert found["python"] == {"version": platform.python_version(), "executable": sys.executable}
    assert found["packages"]["torch"] == version("torch") and found["packages"]["torchtune"] == "0.6.1"
    assert found["cuda"]["available"] == torch.cuda.is_available()
    assert 0 < found["memory_gib"]["available"] <= found["memory_gib"]["total"]


def test_a_plugin_that_does_not_load_is_named(lnlit, monkeypatch):
    entry = registry.Entry("reward", "smile", "no_such_module:Smile", "lnlit-smile", "1.2")
    monkeypatch.setattr(registry, "entries", lambda kind: [entry] if kind == "reward" else [])
    code, out, _ = lnlit("env")
    assert code == 0 and "  lnlit-smile: 1.2; reward smile is broken: " in out
