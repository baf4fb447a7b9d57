"""Every YAML we ship parses and names a model that builds; the quickstart really runs, with a tiny model."""

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule

from lnlit.cli import names
from lnlit.cli.main import main
from lnlit.cli.pipeline import stages_of
from lnlit.cli.stage_commands import of_stage

ROOT = Path(__file__).parents[2]
#: What `lnlit ablate` takes names such recipes; tests/cli/test_ablation_recipes.py looks at it.
ABLATIONS = {
    path for path in (ROOT / "yaml" / "ablations").rglob("*.yaml") if "arms" in yaml.safe_load(path.read_text())
}
ALL = sorted(
    path for path in (ROOT / "yaml").rglob("*.yaml") if path.parent.name != "trainer" and path not in ABLATIONS
)
STAGES = {path: stage for path in ALL if (stage := yaml.safe_load(path.read_text()).get("stage"))}
RECIPES = [path for path in ALL if path not in STAGES]
CLUSTER = [path for path in RECIPES if path.parent.name.startswith("ln-")]
OVERLAYS = sorted((ROOT / "yaml" / "trainer").glob("*.yaml"))
#: What trainer overlays are for: models under a `runtime`. Cluster recipes bring a strategy of their own, and block
#: distillation has no runtime.
SINGLE = [path for path in RECIPES if path not in CLUSTER and path.name != "1b_block_distill.yaml"]
pytestmark = pytest.mark.usefixtures("vllm_plugin")
JUDGE = "meta-llama/Llama-3.3-70B-Instruct"
#: Table 2: samples of each domain and mode.
TABLE_2 = {
    f"steps.1.shares.{domain}": samples
    for domain, samples in {
        "math/on": 2_225_427,
        "math/off": 19_840_970,
        "code/on": 991_706,
        "code/off": 9_117_177,
        "science/on": 708_920,
        "chat/on": 8_574,
        "chat/off": 31_218,
        "instruction following": 56_339,
        "safety": 31_426,
    }.items()
}
#: Section 7.1, of each task: answers per question, tokens, temperature and top-p.
PROTOCOL = {"samples": 16, "max_new_tokens": 32768, "temperature": 0.6, "top_p": 0.95}
EVALUATED = {
    **{f"tasks.{task}.protocol.{key}": value for task in range(5) for key, value in PROTOCOL.items()},
    "thinking.0": True,
    "thinking.1": False,
    "engine.max_model_len": 32768,
}
ARENA = {f"tasks.5.protocol.{key}": value for key, value in PROTOCOL.items() if key != "samples"}
#: What the paper (arXiv 2505.00949, sections 2 to 6) states for each stage, `init_args` left out of
#: the keys. Sizes of 16k, 24k and 32k are powers of two.
STATED: dict[str, dict[str, Any]] = {
    "ln-super/1_library": {
        f"candidates.widths.{at}": width for at, width in ((0, 0.87), (1, 0.75), (3, 0.5), (6, 0.1))
    },
    "ln-ultra/1_library": {
        f"candidates.widths.{at}": width for at, width in ((0, 0.87), (1, 0.75), (4, 0.5), (8, 0.1))
    },
    "ln-super/2b_measure": {"workloads.0.batch_size": 16, "dtype": "float8"},
    "ln-super/3_solve": {"deployment.targets.0.min": 300_000},
    "ln-ultra/3_solve": {"deployment.targets.0.max": 0.6667},
    "ln-nano/4_curate": {key: TABLE_2[key] for key in TABLE_2 if key.endswith(("math/on", "code/on", "science/on"))},
    "ln-super/4b_curate": TABLE_2,
    "ln-ultra/4c_curate": TABLE_2,
    "ln-nano/9_eval": {**EVALUATED, "tasks.1.rows": 15},  # "AIME25-I only"
    "ln-super/9b_eval": EVALUATED | ARENA,
    "ln-ultra/9_eval": EVALUATED | ARENA,
    "ln-nano/5_sft": {
        "model.optimizer.learning_rate": 1e-4,
        "data.sequence_length": 32768,
        "data.packing": True,
        "trainer.accumulate_grad_batches": 32,
    },
    "ln-nano/5b_sft": {
        "data.sequence_length": 32768,
        "data.packing": True,
        "trainer.accumulate_grad_batches": 32,
    },
    "ln-nano/8_rpo": {
        "model.beta": 3e-2,
        "model.optimizer.learning_rate": 7e-7,
        "trainer.accumulate_grad_batches": 64,
        "trainer.max_steps": 400,
    },
    "ln-super/5_sft": {
        "model.optimizer.learning_rate": 5e-6,
        "model.optimizer.schedule": "constant",
        "data.sequence_length": 16384,
        "trainer.accumulate_grad_batches": 4,
    },
    "ln-super/7_rloo": {
        "data.prompts.min_instructions": 1,
        "data.prompts.max_instructions": 10,
        "data.rollout.prompts_per_rollout": 128,
        "trainer.max_steps": 119,
    },
    "ln-super/8_rpo": {
        "model.beta": 1e-5,
        "model.eta": 3.0,
        "model.optimizer.learning_rate": 4e-7,
        "data.rollout.prompts_per_rollout": 64,
        "trainer.max_steps": 500,
    },
    "ln-ultra/5_sft": {
        "model.optimizer.learning_rate": 1e-5,
        "model.optimizer.final_learning_rate": 1e-6,
        "model.optimizer.schedule": "cosine",
        "model.optimizer.warmup_ratio": 0.1,
        "data.sequence_length": 24576,
        "data.packing": True,
        "trainer.accumulate_grad_batches": 4,
    },
    "ln-ultra/5b_annotate": {"sampling.samples_per_prompt": 8},
    "ln-ultra/6_grpo": {
        "model.temperature": 1.0,
        "data.prompts.pass_rate_below": 0.75,
        "data.prompt_order.levels": 8,
        "data.rewards.0.reward.model": JUDGE,
        "data.engine.tensor_parallel_size": 8,
        "data.engine.quantization": "fp8_per_tensor",
        "data.rollout.sleep_engine_while_training": True,
        "data.rollout.prompts_per_rollout": 72,
        "data.rollout.samples_per_prompt": 16,
        "data.rollout.updates_per_rollout": 2,
        "trainer.num_nodes": 72,
        "trainer.devices": 8,
        "trainer.precision": "bf16-mixed",
    },
    "ln-ultra/8_grpo": {
        "model.kl.weight": 1e-3,
        "model.optimizer.learning_rate": 3e-7,
        "data.rollout.samples_per_prompt": 8,
        "trainer.max_steps": 30,
    },
}
STATED["ln-nano/5c_sft"] = STATED["ln-nano/5b_sft"]
STATED["ln-nano/8b_rpo"] = STATED["ln-nano/8_rpo"]
STATED["ln-super/8b_rpo"] = STATED["ln-super/8_rpo"]
STATED["ln-ultra/7_rloo"] = STATED["ln-super/7_rloo"]
#: Rows that one optimizer step learns from.
BATCHES = {"ln-nano/5": 256, "ln-nano/8": 512, "ln-super/5": 256, "ln-ultra/5_": 256}
#: What the comment of a line says whose value the paper does not have: it is silent, or lnlit cannot do as it says.
MARKS = ("not stated", "the paper:")
#: Settings that are no numbers and change what is learned, or how much memory that takes.
CHOICES = {
    "schedule", "packing", "loss", "scale_rewards", "ratio", "reduction", "estimator", "place", "outside",
    "mask_truncated", "thinking", "quantization", "dtype", "precision", "sleep_engine_while_training",
    "activation_checkpointing",
    "compile",
}  # fmt: skip
PAPERS = [path for path in ALL if path.parent.name.startswith("ln-")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_a_recipe_parses_and_states_its_run_folder(recipe, lnlit):
    code, out, err = lnlit("fit", "--config", recipe, "--print_config")
    assert code == 0, err
    resolved = yaml.safe_load(out)
    assert resolved["trainer"]["default_root_dir"].startswith("runs/")
    assert resolved["model"]["class_path"].startswith("lnlit.")


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_the_method_and_the_data_of_a_recipe_take_their_settings(recipe, tmp_path, monkeypatch):
    """Constructors refuse what the parser lets through, such as a divergence with a wrong gradient."""
    monkeypatch.chdir(tmp_path)
    names.install()
    config = yaml.safe_load(recipe.read_text())
    for pattern in re.findall(r"(?<=paths: )\S+", yaml.safe_dump(config)):
        file = tmp_path / pattern.replace("*", "some")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    built: Any = parser.instantiate_classes(parser.parse_object({part: config[part] for part in ("model", "data")}))
    assert type(built.model).__name__ == config["model"]["class_path"]
    assert type(built.data).__name__ == config["data"]["class_path"]


@pytest.mark.parametrize("recipe", STAGES, ids=name)
def test_a_recipe_of_a_stage_parses_and_writes_below_runs(recipe):
    _, _, config = of_stage(STAGES[recipe]).parsed(STAGES[recipe], ["--config", str(recipe)])
    assert config.out.startswith("runs/")


@pytest.mark.parametrize("folder", ["mini", "ln-nano", "ln-super", "ln-ultra"])
def test_every_stage_of_a_pipeline_reads_what_one_before_it_wrote(folder):
    written: set[str] = set()
    for recipe in (stage.file for stage in stages_of(ROOT / "yaml" / folder)):
        config = yaml.safe_load(recipe.read_text())
        named = set(re.findall(rf"runs/{folder}/[\w./-]+", yaml.safe_dump(config)))
        written |= set(re.findall(r"(?:out|default_root_dir): (\S+)", yaml.safe_dump(config)))
        if config.get("stage") == "sweep":
            written.add(f"{config['out']}/model")
        assert named <= written, f"{recipe.name} reads {named - written}"


@pytest.mark.parametrize("recipe", CLUSTER, ids=name)
def test_a_recipe_for_a_cluster_keeps_its_text_out_of_memory(recipe):
    config = yaml.safe_load(recipe.read_text())
    settings = config["data"]["init_args"]
    if config["model"]["class_path"] == "BlockDistill":  # its groups of layers see the same rows: no stream
        assert settings["cache"] and "streaming" not in settings
    else:
        assert config["trainer"]["max_steps"] > 0
        assert config["data"]["class_path"] == "PromptData" or settings["streaming"] is True


def stage_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def leaves(node: yaml.Node, key: str = "") -> Iterator[tuple[str, yaml.ScalarNode]]:
    """(dotted key without `init_args`, value) of everything in a recipe."""
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    items = node.value if isinstance(node, yaml.MappingNode) else ()
    for name, value in items:
        yield from leaves(value, key if name.value == "init_args" else f"{key}.{name.value}".lstrip("."))
    for index, value in enumerate(node.value if isinstance(node, yaml.SequenceNode) else ()):
        yield from leaves(value, f"{key}.{index}")


def test_the_papers_numbers_are_of_recipes_that_there_are():
    assert set(STATED) <= {stage_of(path) for path in PAPERS}
    assert sum(TABLE_2.values()) == 33_011_757  # the table's own total


@pytest.mark.parametrize("recipe", PAPERS, ids=name)
def test_a_number_is_the_papers_or_says_that_it_is_not(recipe):
    text = recipe.read_text()
    lines, stated, found = text.splitlines(), STATED.get(stage_of(recipe), {}), set()
    for key, node in leaves(yaml.compose(text, yaml.SafeLoader)):
        line = lines[node.start_mark.line]
        marked = any(mark in line.partition("#")[2] for mark in MARKS)
        value = yaml.safe_load(node.value)
        if key in stated:
            found.add(key)
            assert value == stated[key] and not marked, f"line {node.start_mark.line + 1}: {line}"
        elif node.tag.endswith((":int", ":float")) or key.rpartition(".")[2] in CHOICES:
            assert marked, f"line {node.start_mark.line + 1}: {line}"
    assert found == set(stated)


@pytest.mark.parametrize("recipe", PAPERS, ids=name)
def test_a_batch_is_as_large_as_the_papers(recipe):
    config = yaml.safe_load(recipe.read_text())
    trainer, data = config.get("trainer", {}), config.get("data", {}).get("init_args", {})
    ranks = trainer.get("num_nodes", 1) * trainer.get("devices", 1)
    if isinstance(trainer.get("strategy"), dict):
        sizes = trainer["strategy"]["init_args"]
        assert sizes["data_parallel_size"] * sizes["tensor_parallel_size"] == ranks
        ranks = sizes["data_parallel_size"]  # ranks with rows of their own
    for stage, rows in BATCHES.items():
        if stage_of(recipe).startswith(stage) and trainer:
            assert ranks * data["micro_batch_size"] * trainer["accumulate_grad_batches"] == rows
    if rollout := data.get("rollout"):  # what `PromptData` asks of the ranks
        assert rollout["prompts_per_rollout"] >= ranks
        compares = config["model"]["class_path"] == "RPO"
        units = rollout["prompts_per_rollout"] // rollout["updates_per_rollout"]
        units *= 1 if compares else rollout["samples_per_prompt"]
        assert units >= ranks * trainer["accumulate_grad_batches"]
    if stage_of(recipe) == "ln-ultra/6_grpo":
        assert units == 576
    if stage_of(recipe) == "ln-ultra/8_grpo":
        assert units == 288


@pytest.mark.parametrize("recipe", [path for path in ALL if "fp8_per_tensor" in path.read_text()], ids=name)
def test_fp8_may_differ_from_the_trainer_by_more_than_the_default(recipe):
    check = yaml.safe_load(recipe.read_text())["data"]["init_args"]["logprob_check"]
    assert 1 < check["max_difference"] <= 3
    assert 0.1 < check["mean_difference"] <= 0.3  # another model's is 3


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
    recipe["trainer"]["callbacks"].append({"class_path": "RunResults", "init_args": {"out": "results.json"}})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    results = json.loads((tmp_path / "runs/quickstart/toggle_report.json").read_text())
    run = json.loads((tmp_path / "results.json").read_text())
    for name, mode in product(("accuracy", "obedience", "truncated"), ("on", "off")):
        answers = run["questions"][f"toggle/{name}_{mode}"]
        assert [sum(answers.values()), len(answers)] == results["after"][mode][name]
        assert run["metrics"][f"toggle/{name}_{mode}"] == sum(answers.values()) / 4
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
