"""Every mistake in the configuration of a `PromptData` is one line on stderr with the place and the way out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.rollout.native import NativeEngine

CONFIG = """\
trainer:
  max_steps: 2
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {root}
model:
  class_path: GRPO
  init_args:
    model: {model}
    optimizer:
      learning_rate: 0.001
    kl:
      weight: 0.1
data:
  class_path: PromptData
  init_args:
    tokenizer: {model}
    prompts:
      class_path: jsonl
      init_args:
        paths: {prompts}
    rewards:
      - reward:
          class_path: format
        weight: 0.5
    engine:
      class_path: native
      init_args:
        dtype: float32
        device: cpu
    prompt_order:
      class_path: GaussianCurriculum
      init_args:
        sigma: 0.2
    held_out:
      prompts:
        class_path: jsonl
        init_args:
          paths: {prompts}
      samples_per_prompt: 1
    rollout:
      prompts_per_rollout: 2
      samples_per_prompt: 2
      max_new_tokens: 4
      reward_workers: 1
"""


@pytest.fixture
def write(tiny_model: Path, tmp_path: Path):
    """`write((text, replacement), ...)` writes the configuration and returns its path."""
    prompts = tmp_path / "prompts.jsonl"
    turns = [[{"role": "user", "content": f"say {n}"}] for n in range(8)]
    rows = [{"messages": messages, "thinking": "off", "pass_rate": n / 8} for n, messages in enumerate(turns)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write_one(*swaps: tuple[str, str]) -> Path:
        text = CONFIG.format(model=tiny_model, prompts=prompts, root=tmp_path / "runs")
        for old, new in swaps:
            assert old in text, f"{old!r} is not in the configuration"
            text = text.replace(old, new, 1)
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write_one


MISTAKES = {
    "misspelt key": (
        ("      prompts_per_rollout", "      prompts_per_rolout"),
        "run.yaml:44: data.init_args.rollout: unknown key 'prompts_per_rolout'. Did you mean 'prompts_per_rollout'? ",
    ),
    "missing key": (
        ("      max_new_tokens: 4\n", ""),
        "run.yaml:43: data.init_args.rollout: the key 'max_new_tokens' is missing.",
    ),
    "misspelt reward": (
        ("class_path: format", "class_path: fromat"),
        "run.yaml:26: data.init_args.rewards[0].reward.class_path: unknown reward 'fromat'. Did you mean 'format'? ",
    ),
    "misspelt key of a reward's weight": (
        ("weight: 0.5", "wieght: 0.5"),
        "run.yaml:27: data.init_args.rewards[0]: unknown key 'wieght'. Did you mean 'weight'? Allowed: ",
    ),
    "a reward without its list": (
        ("      - reward:\n          class_path: format\n        weight: 0.5\n", "      class_path: format\n"),
        "run.yaml:24: data.init_args.rewards: expected list[",
    ),
    "misspelt engine": (
        ("class_path: native", "class_path: nativ"),
        "run.yaml:29: data.init_args.engine.class_path: unknown rollout 'nativ'. Did you mean 'native'? Allowed: ",
    ),
    "misspelt argument of the engine": (
        ("dtype: float32", "dtyp: float32"),
        "run.yaml:31: data.init_args.engine.init_args: unknown key 'dtyp'. Did you mean 'dtype'? Allowed: ",
    ),
    "an engine's precision that there is not": (
        ("dtype: float32", "dtype: float16"),
        "run.yaml:31: data.init_args.engine.init_args.dtype: expected one of 'bfloat16', 'float32', got 'float16'",
    ),
    "misspelt order": (
        ("GaussianCurriculum", "GausianCurriculum"),
        "run.yaml:34: data.init_args.prompt_order.class_path: unknown prompt_order 'GausianCurriculum'. Did you mean '",
    ),
    "misspelt argument of the order": (
        ("sigma", "sgima"),
        "run.yaml:36: data.init_args.prompt_order.init_args: unknown key 'sgima'. Did you mean 'sigma'? Allowed: ",
    ),
    "misspelt key of the held-out prompts": (
        ("      samples_per_prompt: 1", "      sample_per_prompt: 1"),
        "run.yaml:42: data.init_args.held_out: unknown key 'sample_per_prompt'. Did you mean 'samples_per_prompt'? ",
    ),
    "misspelt key of the divergence": (
        ("      weight: 0.1", "      wight: 0.1"),
        "run.yaml:15: model.init_args.kl: unknown key 'wight'. Did you mean 'weight'? Allowed: ",
    ),
    "a divergence with a wrong gradient": (
        ("      weight: 0.1", "      weight: 0.1\n      estimator: k1\n      place: loss"),
        "kl: k1 with place: loss is refused, as its gradient is zero on average",
    ),
    "a toggle that there is not": (
        ("      reward_workers: 1", "    thinking: maybe"),
        "run.yaml:47: data.init_args.thinking: expected ",
    ),
    "what to do with cut completions": (
        ("      reward_workers: 1", "      mask_truncated: drop"),
        "run.yaml:47: data.init_args.rollout.mask_truncated: expected bool, got 'drop'",
    ),
    "too few samples": (
        ("      samples_per_prompt: 2", "      samples_per_prompt: 1"),
        "data.rollout.samples_per_prompt: a sample is judged by its siblings, so 2 or more; got 1",
    ),
    "no rewards": (
        ("      - reward:\n          class_path: format\n        weight: 0.5\n", "      []\n"),
        "data.rewards: GRPO learns from rewards, so at least one",
    ),
    "no workers": (
        ("reward_workers: 1", "reward_workers: 0"),
        "data.rollout.reward_workers: expected a positive number, got 0",
    ),
    "rewards of one name": (
        ("        weight: 0.5\n", "      - reward:\n          class_path: format\n"),
        "data.rewards: two are called FormatReward; give each a name of its own.",
    ),
    "no reward that counts": (
        ("weight: 0.5", "weight: 0"),
        "data.rewards: every weight is 0, and a reward of weight 0 is only logged, so there is nothing to learn from.",
    ),
    "a divergence beyond fp32": (
        ("      weight: 0.1", "      weight: 1.0e+30"),
        "kl.weight: 1e+30 times a divergence is beyond fp32's largest number, so the loss would be infinite",
    ),
    "completions longer than the context": (
        ("      max_new_tokens: 4", "      max_new_tokens: 128"),
        "data.rollout.max_new_tokens: 128 leave no room for a prompt in a context of 128",
    ),
    "a prompt file that is not there": (
        ("prompts.jsonl", "prompt.jsonl"),
        "data: no file matches 'prompt.jsonl'",
    ),
    "no room for any prompt": (
        ("      max_new_tokens: 4", "      max_new_tokens: 126"),
        "data.held_out.prompts: none of 8 rows has a prompt of at most 2 tokens",
    ),
    "settings that have another place": (
        ("    rollout:\n", "    take_turns: true\n    truncated: mask\n    rollout:\n"),
        "run.yaml:43: data.init_args: take_turns is now called rollout.sleep_engine_while_training; truncated is now "
        "called rollout.mask_truncated, true for mask",
    ),
    "a method that does not sample": (
        ("class_path: GRPO\n  init_args:", "class_path: SFT\n  init_args:"),
        "run.yaml:14: model.init_args: unknown key 'kl'.",
    ),
}


@pytest.mark.parametrize(("swap", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(lnlit, write, swap, message):
    path = write(swap)
    code, _, err = lnlit("fit", "--config", path)
    line = err.replace(f"{path.parent}/", "")
    assert code == 2, err
    line = line.splitlines()[-1]
    assert line.startswith(f"error: {message}"), line


@pytest.mark.parametrize("mistake", ["rewards of one name", "completions longer than the context"])
def test_what_is_known_before_is_refused_before_the_model_is_loaded(lnlit, write, mistake, monkeypatch):
    monkeypatch.setattr("lnlit.modules.lit_model.load_weights", lambda *_: pytest.fail("the model was loaded"))
    swap, message = MISTAKES[mistake]
    code, _, err = lnlit("fit", "--config", write(swap))
    assert code == 2 and message in err.splitlines()[-1], err


OWN = """\
from dataclasses import dataclass

from lnlit.rl.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class Bold(GRPO):
    boldness: float = 2.0

    def advantages(self, table):
        return self.boldness * super().advantages(table)
"""


def test_an_algorithm_of_ones_own_is_named_by_its_file(lnlit, write, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    given = "    algorithm:\n      class_path: mine.py:Bold\n      init_args: {boldness: 3.0, kl: {weight: 0.1}}\n"
    name, kl = ("class_path: GRPO", "class_path: Policy"), "    kl:\n      weight: 0.1\n"
    code, _, err = lnlit("fit", "--config", write(name, (kl, given)))
    assert code == 0, err
    code, _, err = lnlit("fit", "--config", write(name, (kl, given.replace("ness", ""))))
    assert code == 2 and "unknown key 'bold'. Did you mean 'boldness'?" in err.splitlines()[-1], err


@pytest.mark.parametrize(("word", "name"), [("rollout", "OldPolicy"), ("data", "StoredLogProbs")])
def test_a_reference_that_was_a_word_has_a_name(lnlit, write, word, name):
    settings = ("    kl:\n      weight: 0.1\n", f"    beta: 1\n    reference: {word}\n")
    code, _, err = lnlit("fit", "--config", write(("class_path: GRPO", "class_path: RPO"), settings))
    assert code == 2
    assert err.splitlines()[-1].endswith(
        f"model.reference: {word!r} is now called {{class_path: {name}}}; a folder of that name is ./{word}"
    )


SNAPSHOT = "    reference: {class_path: PolicySnapshot, init_args: {every_n_rollouts: N}}\n    kl:\n"


@pytest.mark.parametrize("every", ["0", "-1", "true", "1.5"])
def test_a_copy_of_the_policy_is_taken_every_one_or_more_rollouts(lnlit, write, every):
    code, _, err = lnlit("fit", "--config", write(("    kl:\n", SNAPSHOT.replace("N", every))))
    assert code == 2
    assert re.search(rf"every_n_rollouts: expected .*, got '?{every}", err.splitlines()[-1], re.IGNORECASE), err


@pytest.mark.parametrize("first", ["fixed", "copied"])
def test_a_run_goes_on_with_its_kind_of_reference(lnlit, write, first):
    save = ("trainer:\n", "trainer:\n  callbacks:\n    - {class_path: Checkpoint, init_args: {every_n_steps: 1}}\n")
    swaps = {"fixed": [save], "copied": [save, ("    kl:\n", SNAPSHOT.replace("N", "2"))]}
    code, _, err = lnlit("fit", "--config", write(*swaps.pop(first)))
    assert code == 0, err
    (other,) = swaps.values()
    code, _, err = lnlit("fit", "--config", write(*other), "--trainer.max_steps", 4, "--ckpt_path", "last")
    assert code == 2
    was = "was a PolicySnapshot" if first == "copied" else "was no PolicySnapshot"
    assert f"step-2.ckpt is of a run whose model.reference {was}. Resume with the same" in err.splitlines()[-1], err


def test_a_curriculum_runs_and_goes_on(lnlit, write, tmp_path):
    path = write(("max_steps: 2", "max_steps: 3"))
    code, _, err = lnlit("fit", "--config", path)
    assert code == 0, err
    code, _, err = lnlit("fit", "--config", path, "--trainer.max_steps", 5, "--ckpt_path", "last")
    assert code == 0, err
    assert (tmp_path / "runs" / "checkpoints" / "step-5.ckpt").exists()


def test_an_engine_that_gives_up_is_one_line_and_loses_nothing(lnlit, write, tmp_path, monkeypatch):
    generate = NativeEngine.generate

    def generate_or_give_up(self, requests, sampling):
        if self._version == 2:
            raise UserError("the engine has no memory left; lower its batch_size")
        return generate(self, requests, sampling)

    monkeypatch.setattr(NativeEngine, "generate", generate_or_give_up)
    path = write(
        ("trainer:\n", "trainer:\n  callbacks:\n    - {class_path: Checkpoint, init_args: {every_n_steps: 1}}\n")
    )
    code, _, err = lnlit("fit", "--config", path, "--trainer.max_steps", 4, "--data.held_out", "null")
    assert code == 2
    assert err.splitlines()[-1] == "error: the engine has no memory left; lower its batch_size"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, _, err = lnlit("fit", "--config", path, "--trainer.max_steps", 4, "--ckpt_path", "last")
    assert code == 0 and "resuming from" in err and "step-2.ckpt" in err
