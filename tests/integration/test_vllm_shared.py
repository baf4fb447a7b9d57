"""Two ranks share one vLLM, whose workers hold half of the model each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_vllm import PYTHON, SETTINGS
from warm import torchrun

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM's environment is absent; `make test` makes it"),
]


def test_two_ranks_share_a_vllm(monkeypatch, tmp_path, record_property):
    monkeypatch.setenv("LNLIT_VLLM_PYTHON", str(PYTHON))
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    torchrun(2, Path(__file__).with_name("vllm_on_ranks.py"), "2", tmp_path / "found", cwd=tmp_path, timeout=390)
    first, second = (json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1))
    assert first["has vLLM"] and not second["has vLLM"]
    for each in (first, second):
        for found in each["differences"]:
            record_property("difference of log-probs", found)
            assert found <= 1e-5
        assert each["of older weights"] > 0.1  # what would be seen of an engine that keeps older weights
        record_property("seconds to start and generate", each["seconds"][0])
        record_property("seconds of a sync and to generate", each["seconds"][1])
