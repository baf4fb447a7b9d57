"""`lnlit run` over the real recipes of yaml/mini, with a tiny model and a few tokens: every stage feeds the next."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lnlit.checkpoint.formats import read_spec
from lnlit.cli.main import main
from lnlit.specs import BlockSpec
from lnlit.testing.tiny import attention, swiglu, tiny_folder, tiny_spec

RECIPES = Path(__file__).parents[2] / "yaml" / "mini"
#: Up to the healed child; tests/cli/test_recipes.py runs what comes after.
SEARCH = [recipe for recipe in RECIPES.glob("*.yaml") if recipe.name < "5"]
#: What makes the recipes small. Times of a model this small are noise, so the budgets are parameters.
SMALLER = {
    "length: 512": "length: 32",
    "rows: 16": "rows: 2",
    "\nout: runs/mini/library_untrained": "\nout: runs/mini/library_untrained\ncandidates: {width_multiple: 8}",
    "rows: 8\n": "rows: 2\n",
    "skip: 400": "skip: 4",
    "rows: 4\n": "rows: 2\n",
    "skip: 410": "skip: 6",
    "max_steps: 48": "max_steps: 2\n  accelerator: cpu",
    "max_steps: 60": "max_steps: 2\n  accelerator: cpu",
    "max_steps: 120": "max_steps: 2\n  accelerator: cpu",
    "val_check_interval: 60": "val_check_interval: 1",
    "compile: auto": "compile: false",
    "rounds: 3": "rounds: 1\nsamples: 1",
    "batch_size: 8, prompt_tokens: 256, new_tokens: 32": "batch_size: 1, prompt_tokens: 8, new_tokens: 3",
    "cost: throughput, min: 1.3": "cost: parameters, max: 0.9",
    "frontier: {cost: latency_s, values: [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]": "frontier: {cost: parameters, values: [0.95]",
}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    spec = tiny_spec().replace(layers=(BlockSpec(attention(2), swiglu(64)),) * 3)
    tiny_folder(tmp_path / "runs" / "smollm2", spec)
    (tmp_path / "data" / "pydocs").mkdir(parents=True)
    rows = [json.dumps({"text": f"page {index}: {index * 7919} of {index * 104729}. " * 9}) for index in range(30)]
    for name in ("train", "valid"):
        with gzip.open(tmp_path / "data" / "pydocs" / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(rows) + "\n")
    (tmp_path / "mini").mkdir()
    used = set()
    for recipe in SEARCH:
        text = recipe.read_text()
        for old, new in SMALLER.items():
            used |= {old} if old in text else set()
            text = text.replace(old, new)
        (tmp_path / "mini" / recipe.name).write_text(text)
    assert used == set(SMALLER)
    return tmp_path


@pytest.mark.usefixtures("warm_python")
def test_the_mini_pipeline_ends_in_a_healed_child_and_a_report(workplace, capfd):
    assert main(["run", "mini"]) == 0, capfd.readouterr().err
    runs = workplace / "runs" / "mini"
    solution = json.loads((runs / "solution.json").read_text())
    assert solution["status"] == "optimal" and solution["solutions"][0]["gap"] <= 1e-9
    child, healed = read_spec(runs / "child"), read_spec(runs / "healed")
    assert child == healed != read_spec(workplace / "runs" / "smollm2")
    assert [model["name"] for model in json.loads((runs / "measured.json").read_text())["models"]] == [
        "runs/smollm2",
        "runs/mini/child",
        "runs/mini/fused",
    ]
    assert "</html>" in (runs / "report" / "report.html").read_text()
    capfd.readouterr()
    assert main(["run", "mini"]) == 0
    assert capfd.readouterr().err.count(": finished") == len(SEARCH)
