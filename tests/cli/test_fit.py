"""`lnlit fit` on a tiny model: runs, defaults, printing, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml


def test_two_steps_run(lnlit, config):
    code, _, err = lnlit("fit", "--config", config())
    assert code == 0, err


def test_short_names_become_class_paths(lnlit, config):
    code, out, err = lnlit("fit", "--config", config(), "--print_config")
    assert code == 0, err
    printed = yaml.safe_load(out)
    assert printed["model"]["class_path"] == "lnlit.modules.sft.SFT"
    assert printed["data"]["class_path"] == "lnlit.data.datamodule.ChatData"
    assert printed["data"]["init_args"]["train"]["class_path"] == "lnlit.data.sources.JsonlSource"


def test_the_printed_configuration_runs(lnlit, config, tmp_path):
    _, out, _ = lnlit("fit", "--config", config(), "--print_config")
    (tmp_path / "printed.yaml").write_text(out)
    code, again, err = lnlit("fit", "--config", tmp_path / "printed.yaml", "--print_config")
    assert (code, again) == (0, out), err


def test_later_files_and_options_win(lnlit, config, tmp_path):
    (tmp_path / "more.yaml").write_text(
        "trainer: {max_steps: 5}\nmodel: {init_args: {optimizer: {weight_decay: 0.5}}}\n"
    )
    options = [
        "--config",
        config(),
        "--config",
        tmp_path / "more.yaml",
        "--model.init_args.optimizer.learning_rate=0.5",
    ]
    _, out, err = lnlit("fit", *options, "--trainer.max_steps", 7, "--print_config")
    printed = yaml.safe_load(out)
    assert printed["trainer"]["max_steps"] == 7
    optimizer = printed["model"]["init_args"]["optimizer"]
    assert (optimizer["weight_decay"], optimizer["learning_rate"]) == (0.5, 0.5), err


def test_a_source_by_registry_name_on_the_command_line(lnlit, config, rows_file):
    options = ["--data.init_args.train", "JsonlSource", "--data.init_args.train.paths", rows_file]
    code, out, err = lnlit("fit", "--config", config(), *options, "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["data"]["init_args"]["train"]["init_args"]["paths"] == str(rows_file)


def test_tensorboard_and_the_seed_are_defaults(lnlit, config):
    code, out, err = lnlit("fit", "--config", config(("  logger: false\n", "")), "--print_config")
    assert code == 0, err
    printed = yaml.safe_load(out)
    assert printed["trainer"]["logger"]["class_path"] == "lightning.pytorch.loggers.TensorBoardLogger"
    assert printed["trainer"]["use_distributed_sampler"] is False
    assert printed["seed_everything"] == 0


def test_a_run_leaves_its_configuration_beside_its_logs(lnlit, config, tmp_path):
    assert lnlit("fit", "--config", config(("  logger: false\n", "")))[0] == 0
    logs = tmp_path / "runs" / "logs"
    assert yaml.safe_load((logs / "config.yaml").read_text())["trainer"]["max_steps"] == 2
    assert list(logs.glob("events.*"))


def test_a_new_run_does_not_mix_with_the_checkpoints_of_an_earlier_one(lnlit, config):
    saving = config(("  enable_checkpointing: false\n", ""))
    assert lnlit("fit", "--config", saving)[0] == 0
    code, _, err = lnlit("fit", "--config", saving)
    assert code == 2 and "step-2.ckpt is of an earlier run. Go on with --ckpt_path last" in err


COMMANDS = ["fit", "validate"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_full_help_lists_the_trainers_options(lnlit, command):
    code, out, _ = lnlit(command, "--help_all")
    assert code == 0 and "--trainer.max_steps" in out and "--ckpt_path" in out


def test_help_on_one_class(lnlit):
    code, out, _ = lnlit("fit", "--model.help", "SFT")
    assert code == 0 and "--model.optimizer.learning_rate" in out and "Peak rate" in out


@pytest.mark.parametrize(
    ("place", "known", "foreign"),
    [("model", "SFT", "ChatData"), ("data", "ChatData", "SFT"), ("trainer.callbacks", "ExportModel", "SFT")],
)
def test_help_on_a_place_lists_what_it_may_name(lnlit, place, known, foreign):
    code, out, _ = lnlit("fit", f"--{place}.help")
    told = {line.split()[0]: line.split(maxsplit=1)[1:] for line in out.splitlines()[:-1]}
    assert code == 0 and told[known] and foreign not in told


def test_a_checkpoint_does_not_override_the_configuration(config, tmp_path, monkeypatch, tiny_model):
    """Lightning's own command line lets the hyper-parameters stored in a checkpoint file win over the YAML."""
    import torch

    from lnlit.cli.train import LitCLI
    from lnlit.cli.written import Written

    path = tmp_path / "stored.ckpt"
    parameters = {"_class_path": "lnlit.modules.sft.SFT", "model": "another"}
    state = {"pytorch-lightning_version": "2.6.6", "optimizer_states": [], "lr_schedulers": []}
    torch.save(state | {"hyper_parameters": parameters}, path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LitCLI, "_run_subcommand", lambda self, subcommand: None)
    arguments = ["--config", str(config()), "--ckpt_path", str(path)]
    cli = LitCLI("fit", arguments, Written(arguments))
    assert cli.config["fit"].model.init_args.model == str(tiny_model)


def test_validating_a_checkpoint_asks_for_no_schedule(lnlit, config):
    """The configuration may say another length than the run had: nothing is trained."""
    rows = yaml.safe_load(config().read_text())["data"]["init_args"]["train"]["init_args"]["paths"]
    saving = config(
        ("  enable_checkpointing: false\n", ""),
        ("    sequence_length", f"    val: {{class_path: jsonl, init_args: {{paths: {rows}}}}}\n    sequence_length"),
    )
    assert lnlit("fit", "--config", saving, "--trainer.default_root_dir=run")[0] == 0
    checkpoint = next(Path("run/checkpoints").iterdir())
    code, out, err = lnlit("validate", "--config", saving, "--trainer.max_steps=9", "--ckpt_path", checkpoint)
    assert code == 0 and "val/loss" in out, err


def test_validating_on_nothing_is_said(lnlit, config):
    code, _, err = lnlit("validate", "--config", config())
    assert code == 2 and "error: validate: there is nothing to validate on" in err and "Give data.val" in err


def test_validating_on_something_is_fine(lnlit, config, rows_file):
    assert lnlit("validate", "--config", config(), "--data.val", "jsonl", "--data.val.paths", rows_file)[0] == 0


def swapped(folder):
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))


def smaller(folder):
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    last = max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    del tokenizer["model"]["vocab"][last]
    tokenizer["added_tokens"] = [{**token, "id": token["id"] - 1} for token in tokenizer["added_tokens"]]
    file.write_text(json.dumps(tokenizer))


def renamed(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text((folder / name).read_text().replace("<|im_end|>", "<|end|>"))


@pytest.mark.parametrize("change", [swapped, smaller, renamed])
def test_a_data_tokenizer_with_other_ids_is_refused(lnlit, config, tiny_model, tmp_path, change):
    shutil.copytree(tiny_model, tmp_path / "other")
    change(tmp_path / "other")
    code, _, err = lnlit("fit", "--config", config(), "--data.tokenizer", "other")
    assert code == 2 and "data.tokenizer: other is another tokenizer than the model's" in err, err
    assert "tokens differ, e.g." in err


def test_a_data_tokenizer_with_the_same_ids_is_fine(lnlit, config, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(
        json.dumps(json.loads((tiny_model / "tokenizer.json").read_text()), indent=1)
    )
    assert lnlit("fit", "--config", config(), "--data.tokenizer", "other")[0] == 0


def test_an_empty_checkpoint_path_is_one_line(lnlit, config):
    code, _, err = lnlit("fit", "--config", config(), "--ckpt_path", "")
    assert code == 2 and "ckpt_path: expected the path of a checkpoint, or 'last'" in err


def test_the_end_says_what_to_do_with_the_model(lnlit, config):
    code, _, err = lnlit("fit", "--config", config(("  enable_checkpointing: false\n", "")))
    assert (
        code == 0
        and err.splitlines()[-1]
        == "next: lnlit export runs/checkpoints/step-2.ckpt DIR, then lnlit chat DIR, lnlit eval DIR --tasks TASK"
    )
    export = "  callbacks: [{class_path: ExportModel, init_args: {out: my model}}]\nmodel:\n  class"
    code, _, err = lnlit("fit", "--config", config(("model:\n  class", export)))
    assert code == 0 and err.splitlines()[-1] == "next: lnlit chat 'my model', lnlit eval 'my model' --tasks TASK", err
