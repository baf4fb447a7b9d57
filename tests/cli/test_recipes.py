"""Every YAML we ship parses and names a model that builds; the quickstart really runs, with a tiny model."""

import json
from pathlib import Path

import pytest
import yaml

from lnlit.cli.main import main

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "yaml").rglob("*.yaml") if path.parent.name != "trainer")
OVERLAYS = sorted((ROOT / "yaml" / "trainer").glob("*.yaml"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_a_recipe_parses_and_states_its_run_folder(recipe, lnlit):
    code, out, err = lnlit("fit", "--config", recipe, "--print_config")
    assert code == 0, err
    resolved = yaml.safe_load(out)
    assert resolved["trainer"]["default_root_dir"].startswith("runs/")
    assert resolved["model"]["class_path"].startswith("lnlit.")


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name)
def test_a_trainer_overlay_fits_every_recipe(overlay, lnlit):
    for recipe in RECIPES:
        code, _, err = lnlit("fit", "--config", recipe, "--config", overlay, "--print_config")
        assert code == 0, err


def test_the_quickstart_fills_every_cell_of_its_table(tiny_model, lnlit, tmp_path, monkeypatch):
    recipe = yaml.safe_load((ROOT / "yaml/quickstart/sft.yaml").read_text())
    recipe["model"]["init_args"] |= {"model": str(tiny_model), "runtime": {"compile": False}}
    recipe["data"]["init_args"] |= {"tokenizer": str(tiny_model), "sequence_length": 128}
    recipe["data"]["init_args"]["train"]["init_args"]["size"] = 40
    recipe["trainer"] |= {"max_steps": 2, "accelerator": "cpu"}
    report = recipe["trainer"]["callbacks"][0]["init_args"]
    report |= {"rows": 4, "max_new_tokens": 5}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    results = json.loads((tmp_path / "runs/quickstart/toggle_report.json").read_text())
    for stage in ("before", "after"):
        for mode in ("on", "off"):
            assert results[stage][mode]["accuracy"][1] == results[stage][mode]["obedience"][1] == 4
    assert (tmp_path / "runs/quickstart/model/lnlit.json").is_file()
    assert list((tmp_path / "runs/quickstart/logs").glob("events.*"))
