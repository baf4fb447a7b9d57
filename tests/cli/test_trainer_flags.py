"""Each flag of the Trainer does what Lightning says of it, or is refused in one line."""

from __future__ import annotations

import json

import pytest
import yaml

REFUSED = {
    "accelerator=tpu": "torch_xla",
    "accelerator=gpu": "No supported gpu",
    "strategy=ddp_spawn": "starts ranks by spawn is not supported",
    "strategy=ddp_notebook": "starts ranks by fork is not supported",
    "strategy=xla": "torch_xla",
    "strategy=nonsense": "invalid strategy",
    "devices=-1": "int > 0",
    "devices=[0]": "int > 0",
    "devices=3000": "3000 processes",
    "num_nodes=2": "MASTER_ADDR",
    "precision=transformer-engine": "transformer_engine",
    "precision=16-true": "bf16",
    'logger={"class_path": "MLFlowLogger"}': "mlflow",
    'logger={"class_path": "CometLogger"}': "comet",
    'callbacks=[{"class_path": "Timer"}]': "Interval.step",
    "val_check_interval=0": "more than 0",
    "check_val_every_n_epoch=0": "at least 1",
    "num_sanity_val_steps=-2": "at least 0",
    "log_every_n_steps=-1": "at least 0",
    "accumulate_grad_batches=0": "at least 1",
    "gradient_clip_val=-1": "positive number",
    "gradient_clip_val=.nan": "positive number",
    "gradient_clip_algorithm=value": "norm",
    "profiler=xla": "torch_xla",
    'plugins=[{"class_path": "lightning.pytorch.plugins.io.AsyncCheckpointIO"}]': "AsyncCheckpointIO",
    "limit_train_batches=-1": "limit_train_batches",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_a_flag_that_no_run_could_keep_is_one_line(lnlit, config, flag: str):
    code, _, err = lnlit("fit", "--config", config(), f"--trainer.{flag}")
    assert code == 2 and REFUSED[flag] in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(line) < 500


@pytest.mark.parametrize("nothing", [None, 3, "text", [], [None], True], ids=repr)
def test_no_trainer_at_all_is_one_line(lnlit, config, nothing):
    path = config()
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "trainer": nothing}))
    code, _, err = lnlit("fit", "--config", path)
    assert code == 2 and "trainer: " in err.splitlines()[-1]


def test_a_folder_that_is_a_file_is_one_line(lnlit, config, tmp_path):
    (tmp_path / "taken").write_text("")
    code, _, err = lnlit("fit", "--config", config(), "--trainer.default_root_dir", tmp_path / "taken")
    assert code == 2 and "taken: file exists" in err


LATE = {
    '[{"class_path": "EarlyStopping", "init_args": {"monitor": "x"}}]': "early_stopping: Early stopping conditioned",
    '[{"class_path": "LearningRateFinder"}]': "lr_finder: AttributeError",
}


@pytest.mark.parametrize("callbacks", LATE)
def test_what_lightnings_own_callback_finds_wrong_in_the_run_is_one_line(lnlit, config, callbacks: str):
    code, _, err = lnlit("fit", "--config", config(), f"--trainer.callbacks={callbacks}")
    assert code == 2 and f"error: trainer, {LATE[callbacks]}" in err


def test_a_bug_of_ours_in_the_run_keeps_its_traceback(lnlit, config, monkeypatch):
    from lnlit.modules.sft import SFT

    def broken(*_):
        raise KeyError("a bug")

    monkeypatch.setattr(SFT, "training_step", broken)
    with pytest.raises(KeyError, match="a bug"):
        lnlit("fit", "--config", config())


def test_barebones_needs_no_other_flag(lnlit, config):
    path = config(("  logger: false\n  enable_checkpointing: false\n", ""))
    code, _, err = lnlit("fit", "--config", path, "--trainer.barebones=true")
    assert code == 0, err


@pytest.mark.parametrize("flag", ["limit_train_batches=1", "overfit_batches=1"])
def test_rollouts_are_not_cut_short(lnlit, tiny_model, tmp_path, flag: str):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "q"}) + "\n")
    (tmp_path / "grpo.yaml").write_text(
        f"""
model: {{class_path: GRPO, init_args: {{model: {tiny_model}, optimizer: {{learning_rate: 1.0e-3}}}}}}
data:
  class_path: PromptData
  init_args:
    tokenizer: {tiny_model}
    prompts: {{class_path: jsonl, init_args: {{paths: prompts.jsonl}}}}
    rewards: [{{reward: {{class_path: format}}}}]
    engine: {{class_path: native}}
    rollout:
      prompts_per_rollout: 1
      samples_per_prompt: 2
      updates_per_rollout: 1
      max_new_tokens: 8
trainer: {{max_steps: 1, accelerator: cpu, logger: false, enable_checkpointing: false}}
"""
    )
    code, _, err = lnlit("fit", "--config", "grpo.yaml", f"--trainer.{flag}")
    assert code == 2 and "an epoch of rollouts cannot be cut short" in err
