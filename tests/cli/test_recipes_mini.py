"""The stages of yaml/mini from the warm start on really run, each on what the one before it wrote."""

import gzip
import json
from itertools import product
from pathlib import Path

import pytest
import yaml
from tiny_road import learning, write_preferences

from lnlit.checkpoint.formats import read_spec
from lnlit.cli.main import main
from lnlit.cli.pipeline import stages_of
from lnlit.cli.stage_commands import of_stage
from lnlit.testing.tiny import tiny_folder, tiny_spec

ROOT = Path(__file__).parents[2]


def test_the_mini_pipelines_reinforcement_learning_ends_in_an_aligned_child(tmp_path, monkeypatch, capfd):
    """Each of its stages, on what the one before wrote, with a random child that reads bytes."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    spec = tiny_spec().replace(context_length=1024)
    for folder in ("runs/smollm2", "runs/mini/base"):
        tiny_folder(tmp_path / folder, spec)
    write_preferences(tmp_path)
    for recipe in (stage.file for stage in stages_of(ROOT / "yaml" / "mini") if "5" <= stage.name < "9"):
        text = learning(recipe)
        (tmp_path / recipe.name).write_text(text)
        stage = yaml.safe_load(text).get("stage")
        command, options = ([of_stage(stage).name, stage], []) if stage else (["fit"], ["--trainer.accelerator", "cpu"])
        assert main([*command, "--config", recipe.name, *options]) == 0, capfd.readouterr().err
    assert read_spec("runs/mini/aligned") == read_spec("runs/mini/merged") == spec
    rows = [json.loads(line) for line in (tmp_path / "runs/mini/prompts.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in rows] == [2] * 6
    completions = Path("runs/mini/generated.jsonl.completions").read_text().splitlines()[1:]
    modes = [json.loads(line)["generated"]["thinking"] for line in completions]
    assert modes == ["on", "off"] * 2 and Path("runs/mini/generated.jsonl").is_file()
    assert (tmp_path / "runs/mini/curriculum.png").stat().st_size > 1000


def test_the_mini_pipelines_models_stand_in_one_table(tmp_path, monkeypatch, capfd):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "yaml/mini/9_eval.yaml").read_text()
    small = {
        "size: 40": "size: 2",
        "rows: 5": "rows: 1",
        "samples: 2": "samples: 1",
        "max_new_tokens: 96": "max_new_tokens: 4",
    }
    for old, new in small.items():
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "9_eval.yaml").write_text(text)
    recipe = yaml.safe_load(text)
    models = [*recipe["models"], recipe["against"]]
    for number, folder in enumerate(models):
        tiny_folder(tmp_path / folder, tiny_spec().replace(context_length=1024), seed=number)
    (tmp_path / "data" / "pydocs").mkdir(parents=True)
    with gzip.open(tmp_path / "data/pydocs/valid.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": f"Text number {n}."}) + "\n" for n in range(3))
    asked = [{"context": "a b", "continuation": "c", "query": "Which?", "choices": ["d", "e"], "gold": 1}]
    asked[0] |= {"ctx": "Cooking: a cook", "endings": ["cooks", "flies", "swims", "is"], "label": 0}
    (tmp_path / "data/gauntlet").mkdir()
    (tmp_path / "data/hellaswag").mkdir()
    for task in recipe["tasks"][-4:]:
        row = json.dumps(asked[0]) + "\n"
        file = tmp_path / task["init_args"]["source"]["init_args"]["paths"]
        file.write_bytes(gzip.compress(row.encode()) if file.suffix == ".gz" else row.encode())
    assert main(["eval", "--config", "9_eval.yaml"]) == 0, capfd.readouterr().err
    results = json.loads(Path("runs/mini/eval/results.json").read_text())["results"]
    names, tasks = [Path(model).name for model in models], [task["class_path"] for task in recipe["tasks"]]
    assert {(row["model"], row["task"]) for row in results} == set(product(names, tasks))
    modes = [(row["model"], row["thinking"]) for row in results if row["task"] == "reasoning_gym"]
    assert sorted(modes) == sorted(product(names, ("on", "off")))
