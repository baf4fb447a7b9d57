"""The commands as functions: what they return, that they refuse what the command line refuses, and what is offered."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

import lnlit as front
from lnlit import builtins
from lnlit.errors import UserError


def weights(module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in module.parameters()]


def test_fit_trains_what_the_command_line_trains(lnlit, config, tmp_path, tiny_model):
    callback = f"  callbacks:\n    - {{class_path: ExportModel, init_args: {{out: {tmp_path}/out}}}}\nmodel:"
    path = config(("model:\n  class_path", f"{callback}\n  class_path"))
    assert lnlit("fit", "--config", path, "--model.optimizer.learning_rate", 3e-4, "--trainer.max_steps", 1)[0] == 0
    overrides = {"model.optimizer.learning_rate": 3e-4, "trainer.max_steps": 1, "trainer.callbacks": []}
    trainer = front.fit(path, overrides)
    assert trainer.global_step == 1 and float(trainer.callback_metrics["train/loss"]) > 0
    from lnlit.checkpoint.formats import open_checkpoint
    from lnlit.models.weights import canonical_weights

    written = dict(open_checkpoint(tmp_path / "out").weights(tmp_path / "out"))
    ours = dict(canonical_weights(trainer.lightning_module.decoder))
    assert ours.keys() == written.keys() and all(torch.equal(ours[name], written[name]) for name in ours)


def test_values_arrive_as_they_are_written(config, tmp_path, monkeypatch, rows_file):
    monkeypatch.chdir(tmp_path)
    overrides = {
        "model.lora": {"rank": 2},
        "model.runtime.compile": False,
        "model.optimizer.weight_decay": 1e-05,
        "data.train.paths": [str(rows_file)],
        "data.val": {"class_path": "jsonl", "init_args": {"paths": str(rows_file)}},
    }
    trainer = front.validate(config(), overrides)
    method = trainer.lightning_module
    assert (method.lora.rank, method.optimizer.weight_decay) == (2, 1e-5)
    assert float(trainer.callback_metrics["val/loss"]) > 0


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        ({"model.optimizer.lr": 1.0}, "--model.optimizer.lr=1.0"),
        ({"trainer.max_steps": "many"}, "--trainer.max_steps=many"),
        ({"ckpt_path": "nowhere.ckpt"}, "--ckpt_path=nowhere.ckpt"),
        ({"model.model": "/nowhere"}, "--model.model=/nowhere"),
    ],
)
def test_a_mistake_is_told_as_on_the_command_line(lnlit, config, overrides, option):
    code, _, err = lnlit("fit", "--config", config(), option)
    assert code == 2
    with pytest.raises(UserError) as caught:
        front.fit(config(), overrides)
    assert f"error: {caught.value}" == err.splitlines()[-1]


def test_what_has_no_meaning_in_python_is_refused(config):
    with pytest.raises(UserError, match="'print_config' is for the command line alone"):
        front.fit(config(), {"print_config": True})
    with pytest.raises(UserError, match=r"model\.optimizer is .*; expected what a YAML file can hold"):
        front.fit(config(), {"model.optimizer": front.AdamW(1e-3)})
    with pytest.raises(UserError, match=r"there is no file 'nowhere\.yaml'"):
        front.fit("nowhere.yaml")
    with pytest.raises(UserError, match="there is no such folder"):
        front.run("nowhere")


def test_the_trainer_is_that_of_the_command_line(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = str(tmp_path / "runs")
    flags = {"max_steps": 1, "accelerator": "cpu"}
    ours = front.trainer(default_root_dir=root, **flags)
    swap = [("  logger: false\n  enable_checkpointing: false\n  enable_progress_bar: false\n", "")]
    theirs = front.fit(config(*swap), {"trainer.default_root_dir": root, "trainer.max_steps": 1})
    kinds = [type(callback) for callback in theirs.callbacks if type(callback).__name__ != "SaveConfigCallback"]
    assert {*map(type, ours.callbacks)} >= {*kinds} and ours.log_every_n_steps == theirs.log_every_n_steps == 1
    assert isinstance(ours.logger, TensorBoardLogger) and ours.logger.log_dir == theirs.logger.log_dir
    stability = front.SkipBadSteps()
    mine = [c for c in front.trainer(callbacks=stability, **flags).callbacks if isinstance(c, front.SkipBadSteps)]
    assert mine == [stability]
    with pytest.raises(UserError, match=r"trainer: unknown key 'max_step'. Did you mean 'max_steps'\?"):
        front.trainer(max_step=1)
    with pytest.raises(UserError, match=r"trainer.accumulate_grad_batches: got 0; allowed: at least 1"):
        front.trainer(accumulate_grad_batches=0)


def test_everything_offered_is_there_and_is_no_package():
    offered = front._offered()
    assert {"SFT", "GRPO", "ChatData", "trainer", "search_solve", "rollout_annotate"} <= offered.keys() <= {*dir(front)}
    for name in offered:
        assert getattr(front, name).__name__ == offered[name][1]
    packages = {module.name for module in pkgutil.iter_modules(front.__path__)}
    assert not packages & offered.keys(), "importing the package would take the name"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = front.nonsense


def test_every_stage_and_part_that_a_notebook_builds_is_offered():
    from lnlit.cli import stage_commands

    targets = {f"{home}:{there}": name for name, (home, there) in front._offered().items()}
    for command in stage_commands.ALL:
        for stage, (target, _) in command.stages.items():
            own = {"eval": "evaluate"}.get(command.name, command.name)  # `lnlit.eval` is a package
            assert targets[target] == (own if stage == command.default else f"{command.name}_{stage}")
    for kind in ("source", "reward", "task"):
        assert {*builtins.BUILTINS[kind].values()} <= targets.keys()


def test_a_stage_runs_from_its_file(tmp_path: Path):
    file = tmp_path / "1_page.yaml"
    (tmp_path / "run" / "rollouts").mkdir(parents=True)
    file.write_text(f"stage: page\nrun: {tmp_path}/run\n")
    with pytest.raises(UserError, match="unknown key 'rin'"):
        front.stage(file, {"rin": 1})
