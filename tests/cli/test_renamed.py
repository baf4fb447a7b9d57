"""Whoever uses an old name is told the new one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import lnlit
from lnlit.cli import explain
from lnlit.renamed import keys_now_called, now_called, settings_by_new_names, with_new_names
from lnlit.rl.grpo import GRPO


@pytest.mark.parametrize(
    ("swap", "told"),
    [
        (("class_path: ChatData", "class_path: Experience"), "data.class_path: Experience is now called PromptData"),
        (
            ("    micro_batch_size:", "    window: 8\n    micro_batch_size:"),
            "data.init_args: window is now called shuffle_buffer_size",
        ),
    ],
    ids=["class", "key"],
)
def test_an_old_name_in_a_configuration(swap: tuple[str, str], told: str, config, lnlit):
    code, _, err = lnlit("fit", "--config", config(swap))
    assert code == 2 and err.count("\n") == 1 and told in err, err


def test_an_old_key_of_a_stage(lnlit, tmp_path):
    (tmp_path / "annotate.yaml").write_text("stage: annotate\nmodel: m\nsamples: 8\nworkers: 1\nout: rows.jsonl\n")
    code, _, err = lnlit("rollout", "annotate", "--config", "annotate.yaml")
    assert (
        code == 2 and "samples is now called sampling.samples_per_prompt; workers is now called reward_workers" in err
    ), err


def test_all_old_names_of_a_run_are_told_at_once(config, lnlit, tmp_path):
    path = config(
        ("class_path: SFT", "class_path: Distill"),
        ("    model:", "    kl: 1.0\n    cosine: 0.5\n    tacher: x\n    model:"),
        ("    micro_batch_size:", "    window: 8\n    micro_batch_size:"),
        ("trainer:\n", "trainer:\n  callbacks: {class_path: Stability}\n"),
    )
    code, _, err = lnlit("fit", "--config", path)
    assert code == 2 and err.count("\n") == 1, err
    told = err.replace(f"{path.parent}/", "").removeprefix("error: ").strip().split("; ")
    assert told == [
        "run.yaml:2: trainer.callbacks.class_path: Stability is now called SkipBadSteps",
        "run.yaml:12: model.init_args: kl is now called kl_weight",
        "cosine is now called cosine_weight",
        "run.yaml:27: data.init_args: window is now called shuffle_buffer_size",
    ]


def test_one_advice_for_several_keys_is_given_once(lnlit, tmp_path):
    (tmp_path / "old.yaml").write_text("batch_size: [8]\nprompt_tokens: 256\nnew_tokens: 32\nlibrary: x\nout: c.json\n")
    code, _, err = lnlit("search", "measure", "--config", "old.yaml")
    assert code == 2 and err.startswith(
        "error: old.yaml:1: configuration: batch_size, prompt_tokens, new_tokens are now called workloads: ["
    )
    assert err.count("workloads") == 1, err


def test_a_name_is_told_only_where_the_new_one_is_allowed():
    assert now_called("Stability", ["SkipBadSteps", "ExportModel"]) == "SkipBadSteps"
    assert now_called("Stability", ["ChatData"]) is None
    assert keys_now_called("SAPO", ["positive", "kl"]) == {"positive": "positive_temperature"}
    assert keys_now_called("VESPO", ["positive", "kl"]) == {}


def test_a_subclass_has_its_parents_former_keys_unless_it_uses_them_itself():
    @dataclass(frozen=True, kw_only=True)
    class Plain(GRPO):
        pass

    @dataclass(frozen=True, kw_only=True)
    class Scaled(GRPO):
        scale: float = 1.0

    assert explain._former_keys(Scaled, {"scale": 2.0}) == {}
    assert explain._former_keys(Plain, {"scale": "group", "kl": {}}) == {"scale": "scale_rewards"}


def test_an_old_name_in_python():
    with pytest.raises(AttributeError, match="It is now called 'PromptData'"):
        _ = lnlit.Experience


def test_states_of_renamed_classes_are_found_under_the_new_names():
    saved = {"Experience": {"rollouts": 3}, "callbacks": {"Stability": {"skipped": 1}, "Checkpoint": {}}, "epoch": 0}
    with_new_names(saved)
    assert saved["PromptData"] == {"rollouts": 3} and "Experience" not in saved
    assert saved["callbacks"] == {"SkipBadSteps": {"skipped": 1}, "Checkpoint": {}}


def test_settings_keep_their_meaning():
    old = {"truncated": "mask", "scale": "group", "order": "Uniform", "seed": 1}
    new = {"mask_truncated": True, "scale_rewards": "group", "prompt_order": "Uniform", "seed": 1}
    assert settings_by_new_names(old) == new == settings_by_new_names(new)
    assert settings_by_new_names({"truncated": "keep"}) == {"mask_truncated": False}
