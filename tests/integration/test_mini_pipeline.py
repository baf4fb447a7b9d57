"""`lnlit run` over the real recipes of yaml/mini, with a tiny model and a few tokens: every stage feeds the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_road
from tiny_road import RECIPES, searching, write_parent, write_texts

from lnlit.checkpoint.formats import read_spec
from lnlit.cli.main import main

#: Up to the healed child; tests/cli/test_recipes.py runs what comes after.
SEARCH = [recipe for recipe in RECIPES.glob("*.yaml") if recipe.name < "5"]


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_parent(tmp_path)
    write_texts(tmp_path)
    (tmp_path / "mini").mkdir()
    for recipe in SEARCH:
        (tmp_path / "mini" / recipe.name).write_text(searching(recipe))
    texts = "".join(recipe.read_text() for recipe in SEARCH)
    assert [old for old in tiny_road.SEARCH if old not in texts] == []
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
