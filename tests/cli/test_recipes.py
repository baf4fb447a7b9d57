"""Every YAML we ship parses and names a model that builds; the quickstart really runs, with a tiny model."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lnlit.cli import rollout, search
from lnlit.cli.main import main
from lnlit.cli.run import numbered

ROOT = Path(__file__).parents[2]
ALL = sorted(path for path in (ROOT / "yaml").rglob("*.yaml") if path.parent.name != "trainer")
STAGES = {path: stage for path in ALL if (stage := yaml.safe_load(path.read_text()).get("stage"))}
RECIPES = [path for path in ALL if path not in STAGES]
CLUSTER = [path for path in RECIPES if path.parent.name.startswith("ln-")]
OVERLAYS = sorted((ROOT / "yaml" / "trainer").glob("*.yaml"))
#: What trainer overlays are for: models under a `runtime`. Cluster recipes bring a strategy of their own, and block
#: distillation has no runtime.
SINGLE = [path for path in RECIPES if path not in CLUSTER and path.name != "1b_block_distill.yaml"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_a_recipe_parses_and_states_its_run_folder(recipe, lnlit):
    code, out, err = lnlit("fit", "--config", recipe, "--print_config")
    assert code == 0, err
    resolved = yaml.safe_load(out)
    assert resolved["trainer"]["default_root_dir"].startswith("runs/")
    assert resolved["model"]["class_path"].startswith("lnlit.")


@pytest.mark.parametrize("recipe", STAGES, ids=name)
def test_a_recipe_of_a_stage_parses_and_writes_below_runs(recipe):
    command = rollout if STAGES[recipe] in rollout.STAGES else search
    _, _, config = command.parsed(STAGES[recipe], ["--config", str(recipe)])
    assert config.out.startswith("runs/")


@pytest.mark.parametrize("folder", ["mini", "ln-super", "ln-ultra"])
def test_every_stage_of_a_pipeline_reads_what_one_before_it_wrote(folder):
    written: set[str] = set()
    for recipe in numbered(ROOT / "yaml" / folder):
        config = yaml.safe_load(recipe.read_text())
        named = set(re.findall(rf"runs/{folder}/[\w./-]+", yaml.safe_dump(config)))
        written |= set(re.findall(r"(?:out|default_root_dir): (\S+)", yaml.safe_dump(config)))
        assert named <= written, f"{recipe.name} reads {named - written}"


@pytest.mark.parametrize("recipe", CLUSTER, ids=name)
def test_a_recipe_for_a_cluster_keeps_its_text_out_of_memory(recipe):
    config = yaml.safe_load(recipe.read_text())
    settings = config["data"]["init_args"]
    if config["model"]["class_path"] == "BlockDistill":  # its groups of layers see the same rows: no stream
        assert settings["cache"] and "streaming" not in settings
    else:
        assert settings["streaming"] is True and config["trainer"]["max_steps"] > 0


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name)
def test_a_trainer_overlay_fits_every_recipe_for_one_machine(overlay, lnlit):
    for recipe in SINGLE:
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


def test_gsm8k_takes_two_steps_on_rows_of_its_schema(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "input": [{"role": "user", "content": f"{i}+1?"}],
            "output": f"<think>{i + 1}</think> {i + 1}" if mode == "on" else f"{i + 1}",
            "system_prompt": f"detailed thinking {mode}",
            "reasoning": mode,
            "answer": str(i + 1),
        }
        for i in range(300)
        for mode in ("on", "off")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (ROOT / "yaml/sft/gsm8k.yaml").read_text()
    for old, new in {
        "data/gsm8k_train_toggle.jsonl.gz": "rows.jsonl",
        "runs/smollm2": str(tiny_model),
        "sequence_length: 1024": "sequence_length: 128",
        "max_epochs: 1": "max_steps: 2\n  accelerator: cpu",
        "max_new_tokens: 256": "max_new_tokens: 5",
        "compile: auto": "compile: false",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "tiny.yaml").write_text(text)
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    results = json.loads((tmp_path / "runs/gsm8k/toggle_report.json").read_text())
    asked = results["after"]["on"]["accuracy"][1]
    assert 0 < asked < 30  # the held-out side only
    assert (tmp_path / "runs/gsm8k/checkpoints/step-2.ckpt").is_file()
