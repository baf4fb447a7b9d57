"""Ranks read and hold their own parts, and exchange objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from warm import torchrun

from lnlit.specs import BlockSpec
from lnlit.testing.tiny import VOCAB_SIZE, attention, swiglu, tiny_folder, tiny_spec


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Four megabytes, so that headers and configurations are little beside the weights."""
    wide = tiny_spec().replace(hidden_size=128, layers=(BlockSpec(attention(), swiglu(768)),) * 3)
    return tiny_folder(tmp_path_factory.mktemp("parts") / "model", wide.replace(tie_embeddings=False))


@pytest.fixture(scope="module")
def ranks(model) -> list[dict[str, Any]]:
    script, out = Path(__file__).with_name("rank_parts.py"), model.parent / "found"
    torchrun(2, script, model, out, cwd=out.parent, timeout=280)
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in (0, 1)]


def test_objects_travel_over_gloo_and_wait_for_the_slowest_engine(ranks):
    """vLLM's is given an hour (`answer_time_limit_s`), the process group half an hour."""
    assert [rank["gathered"] for rank in ranks] == [["of 0", "of 1"]] * 2
    assert [rank["streamed"] for rank in ranks] == [[["key", "key of 1"]], []]
    for rank in ranks:
        backend, patience_s = rank["exchange"]
        assert backend == "gloo" and patience_s > 24 * 3600


@pytest.mark.parametrize("mesh", ["fsdp", "tp"])
def test_a_rank_reads_its_own_rows_only(model, ranks, mesh, record_property):
    size = (model / "model.safetensors").stat().st_size
    read = max(rank[mesh]["bytes"] for rank in ranks)
    record_property("share read", read / size)
    assert read < 0.6 * size
    stored = load_file(model / "model.safetensors")
    for rank in ranks:
        assert rank[mesh]["sums"] == {name: float(tensor.double().sum()) for name, tensor in stored.items()}


def test_no_loss_holds_the_logits_of_all_tokens(ranks):
    for rank in ranks:
        assert rank["logits"]["calls"] >= 3 and rank["logits"]["columns"] == VOCAB_SIZE // 2
