"""A model folder of two layers with a byte tokenizer, and rows to train it on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lnlit.specs import BlockSpec, ModelSpec, PartSpec

VLLM = Path(__file__).parents[2] / "plugins" / "lnlit-vllm"
ATTENTION = PartSpec("gqa", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8})


def tiny_spec() -> ModelSpec:
    block = BlockSpec(ATTENTION, PartSpec("swiglu", {"intermediate_size": 48}))
    return ModelSpec(258, 32, (block, block), context_length=128, tie_embeddings=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    from lnlit.checkpoint.folder import save_folder
    from lnlit.models.build import build_decoder, init_weights
    from lnlit.models.weights import canonical_weights
    from lnlit.testing.tiny import save_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    decoder = init_weights(build_decoder(tiny_spec(), "cpu"))
    tokenizer = folder / "tokenizer"
    save_tokenizer(tokenizer)
    weights = canonical_weights(decoder)
    return save_folder(folder / "model", tiny_spec(), weights, tokenizer_from=tokenizer, provenance={})


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"answer {i}"}]}
        for i in range(8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def config(tiny_model: Path, rows_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """`config(text_to_replace, replacement)` writes the YAML of a two-step run and returns its path."""

    def write(*swaps: tuple[str, str], name: str = "run.yaml") -> Path:
        text = CONFIG.format(model=tiny_model, rows=rows_file)
        for old, new in swaps:
            assert old in text, f"{old!r} is not in the configuration"
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


CONFIG = """\
trainer:
  max_steps: 2
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
model:
  class_path: SFT
  init_args:
    model: {model}
    optimizer:
      learning_rate: 0.001
data:
  class_path: ChatData
  init_args:
    tokenizer: {model}
    train:
      class_path: jsonl
      init_args:
        paths: {rows}
    sequence_length: 64
    micro_batch_size: 2
"""


@pytest.fixture
def lnlit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`lnlit("fit", ...)` runs a command in `tmp_path` and returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    # Lightning's log handler keeps the stderr of the first test, which is closed by now
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def run(*arguments: object) -> tuple[int, str, str]:
        from lnlit.cli.main import main

        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def vllm_plugin(installed) -> None:
    """The names that `pip install plugins/lnlit-vllm` gives. Its environment is vLLM's; to name a class needs none."""
    installed(VLLM)
