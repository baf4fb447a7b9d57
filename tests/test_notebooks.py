"""Every notebook runs from top to bottom on a tiny model and search; it is short and committed with its outputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import warm
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.interfaces import Workload
from lnlit.search.space import Candidates
from lnlit.specs import BlockSpec
from lnlit.stages.library import build_library
from lnlit.stages.measure import measure
from lnlit.stages.score import score
from lnlit.testing.tiny import attention, swiglu, tiny_folder, tiny_spec

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """What the mini pipeline leaves before its solve stage, of a random four-layer model."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"text": f"document {index} says {index * 7919} and then {index * 104729} " * 8} for index in range(20)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = tiny_spec().replace(layers=(BlockSpec(attention(2), swiglu(64)),) * 5)
    model = str(tiny_folder(folder / "model", spec))
    sample = TextSample(JsonlSource(str(folder / "text.jsonl")), rows=2, length=32)
    build_library(model, sample, str(folder / "library"), Candidates(width_multiple=8))
    score(model, str(folder / "library"), sample, str(folder / "scores.jsonl"), dtype="float32")
    out = str(folder / "costs.json")
    measure(str(folder / "library"), [Workload(1, 8, 4)], out, dtype="float32", rounds=1, samples=1)
    return folder


def tiny_settings(name: str, runs: Path) -> str:
    sums = {"basic_arithmetic": {}}
    policy = {"model": str(runs / "model"), "new_tokens": 40, "seed": 0, "tasks": sums}
    out = str(runs / name)
    settings = {
        "01_search_the_frontier": {"runs": str(runs), "out": out, "shares": [0.97, 0.9], "speedup": 1.02},
        "02_ffn_fusion": {
            "model": str(runs / "model"),
            "text": str(runs / "text.jsonl"),
            "rows": 2,
            "length": 32,
            "first": 1,
            "last": 3,
        },
        "03_grpo": {
            "out": out,
            "steps": 2,
            "prompts": 2,
            "samples": 2,
            "held_out": 3,
            **policy,
        },
        "04_curriculum": {
            "out": out,
            "questions": 4,
            "answers": 2,
            "rollouts": 2,
            "prompts": 2,
            "samples": 2,
            "held_out": 3,
            "evaluations": 2,
            **policy,
        },
        "05_sft_toggle": {
            "model": str(runs / "model"),
            "out": out,
            "steps": 2,
            "rows": 2,
            "length": 256,
            "held_out": 3,
            "new_tokens": 40,
            "tasks": sums,
            "seed": 0,
        },
        "07_write_a_plugin": {
            **{"model": str(runs / "model"), "text": str(runs / "text.jsonl"), "out": out, "tasks": sums},
            **{"first": 1, "last": 3, "steps": 2, "rows": 2, "length": 32},
            **{"prompts": 2, "samples": 2, "new_tokens": 8},
        },
    }
    return "\n".join(f"{key} = {value!r}" for key, value in settings[name].items())


@pytest.fixture(scope="module")
def kernel() -> Iterator[AsyncKernelManager]:
    """One for all notebooks, that begins with torch imported."""
    manager = AsyncKernelManager(kernel_name="python3")
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv = [warm.python(), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        run_sync(manager.start_kernel)()
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_with_tiny_settings(path: Path, runs: Path, kernel: AsyncKernelManager):
    notebook = nbformat.read(path, as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    settings.source = tiny_settings(path.stem, runs)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset_selective -f ."))  # names of the one before
    NotebookClient(notebook, km=kernel, timeout=240, startup_timeout=240).execute()
    assert any(output.output_type == "display_data" for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_shows_the_outputs_of_a_real_run(path: Path):
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 12
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count is not None for cell in code)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
