"""What goes on where another run stopped, and what must not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import lightning as L
import pytest
import torch
from experience_run import Letters, Run, same
from lightning.pytorch.callbacks import ModelCheckpoint

from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import RewardResult, Source
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import HeldOut, Weighted
from lnlit.modules.reference import OldPolicy
from lnlit.modules.rloo import RLOO
from lnlit.modules.rpo import RPO
from lnlit.objectives.kl import KL
from lnlit.testing.tiny import tiny_folder


class Dated(Source):
    """Rows as Parquet may hold them."""

    def rows(self, start=0):
        for n in range(start, 10):
            messages = [{"role": "user", "content": f"say {n}"}]
            yield {"messages": messages, "answer": str(n), "asked": datetime(2026, 1, 1 + n, tzinfo=UTC)}


def test_rows_that_no_checkpoint_can_hold_do_not_hinder_going_on(model, prompts, tmp_path):
    def begin(root, steps, **settings):
        run = Run(model, prompts, root, steps, updates_per_rollout=2, save=True, **settings)
        run.data.source = Dated()
        return run.fit()

    whole = begin(tmp_path / "whole", 4)
    begin(tmp_path / "parts", 1)
    rest = begin(tmp_path / "parts", 4, ckpt_path=tmp_path / "parts" / "checkpoints" / "step-1.ckpt")
    assert same(rest.weights, whole.weights)


def test_another_fit_with_the_same_data_begins_anew(model, prompts, tmp_path):
    first = Run(model, prompts, tmp_path, 3, updates_per_rollout=2).fit()
    assert first.data.collector.pending
    second, alone = (Run(model, prompts, tmp_path, 4, updates_per_rollout=2) for _ in range(2))
    second.data = first.data
    assert same(second.fit().weights, alone.fit().weights)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "with seed: 0, this run has 1"),
        ({"learner": {"temperature": 2.0, "kl": KL(0.1)}}, "with temperature: 1.0, this run has 2.0"),
        ({"learner": {"kl": KL(0.0)}}, "with reference: .*, this run has None"),
        ({"learner": {"kl": KL(0.1), "reference": "other"}}, "with reference: "),
        ({"learner": {"kl": KL(0.1), "scale_rewards": "none"}}, "with scale_rewards: group, this run has none"),
        ({"learner": {"kl": KL(0.2, "k1", "reward")}}, r"with kl in the reward: None, this run has \[0.2, 'k1'\]"),
        ({"method": RLOO, "learner": {}}, "with method: GRPO, this run has RLOO"),
        ({"max_new_tokens": 5}, "with max_new_tokens: 6, this run has 5"),
        ({"thinking": "on"}, "with thinking: None, this run has on"),
        ({"mask_truncated": True}, "with mask_truncated: False, this run has True"),
        ({"rewards": [Weighted(Letters(), 2.0, "letters")]}, r"with rewards: .*1.0.*, this run has .*2.0"),
    ],
)
def test_a_run_of_other_settings_does_not_go_on(model, prompts, tmp_path, change, says):
    settings = {"learner": {"kl": KL(0.1)}, "updates_per_rollout": 2, "save": True}
    Run(model, prompts, tmp_path, 1, **settings).fit()
    if change.get("learner", {}).get("reference"):
        change = {"learner": {**change["learner"], "reference": str(tiny_folder(tmp_path / "other", seed=3))}}
    with pytest.raises(UserError, match=says):
        Run(
            model, prompts, tmp_path, 2, ckpt_path=tmp_path / "checkpoints" / "step-1.ckpt", **{**settings, **change}
        ).fit()


def test_samples_that_an_older_version_wrote_are_refused(model, prompts, tmp_path):
    run = Run(model, prompts, tmp_path, 1, save=True).fit()
    file = tmp_path / "checkpoints" / "step-1.ckpt"
    saved = torch.load(file, weights_only=True)
    saved[type(run.data).__qualname__].pop("format")
    torch.save(saved, file)
    with pytest.raises(UserError, match="another version of lnlit wrote this checkpoint"):
        Run(model, prompts, tmp_path, 2, ckpt_path=file).fit()


def test_a_run_of_other_prompts_does_not_go_on(model, prompts, tmp_path):
    Run(model, prompts, tmp_path, 1, save=True).fit()
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(Path(prompts).read_text().splitlines(keepends=True)[:9]))
    with pytest.raises(UserError, match="begun with 10 prompts, now there are 9"):
        Run(model, str(fewer), tmp_path, 2, ckpt_path=tmp_path / "checkpoints" / "step-1.ckpt", save=True).fit()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[::-1], "the same 10 prompts in another order"),
        (lambda rows: [row.replace("say", "tell") for row in rows], "10 other prompts, or with other answers"),
        (lambda rows: [row.replace('"answer": "3"', '"answer": "4"') for row in rows], "10 other prompts, or with"),
    ],
)
def test_a_run_of_as_many_other_prompts_does_not_go_on(model, prompts, tmp_path, change, says):
    Run(model, prompts, tmp_path, 1, save=True).fit()
    others = tmp_path / "others.jsonl"
    rows = Path(prompts).read_text().splitlines(keepends=True)
    assert change(rows) != rows
    others.write_text("".join(change(rows)))
    with pytest.raises(UserError, match=f"data.prompts: the run was begun with {says}"):
        Run(model, str(others), tmp_path, 2, ckpt_path=tmp_path / "checkpoints" / "step-1.ckpt", save=True).fit()


class SaveAfter(L.Callback):
    def __init__(self, micro_batches: int) -> None:
        self.left = micro_batches

    def on_train_batch_end(self, trainer, *args):
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/amid.ckpt")


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_validation_comes_at_the_same_steps(model, prompts, tmp_path, stop):
    times = {"val_check_interval": 4, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    settings = {"held_out": HeldOut(JsonlSource(prompts)), "trainer": {"accumulate_grad_batches": 2, **times}}
    first = Run(model, prompts, tmp_path, 6, **settings)
    first.trainer.callbacks.append(SaveAfter(stop))
    first.fit()
    rest = Run(model, prompts, tmp_path, 6, ckpt_path=tmp_path / "amid.ckpt", **settings).fit()
    versions = [[samples[0].rollout.weight_version for samples in run.samples["val"]] for run in (first, rest)]
    assert versions[0] == [2, 4, 6]
    assert versions[1] == [version for version in versions[0] if 2 * version > stop]


@pytest.mark.parametrize(
    ("kind", "learner"), [(GRPO, {"kl": KL(0.1)}), (RPO, {"beta": 0.1}), (RPO, {"beta": 0.1, "reference": OldPolicy()})]
)
def test_half_precision_is_of_the_model_and_not_of_what_is_known_of_samples(model, prompts, tmp_path, kind, learner):
    types = set()

    class Looking(kind):
        def training_step(self, batch, batch_idx):
            types.update(v.dtype for v in vars(batch).values() if hasattr(v, "dtype") and v.is_floating_point())
            assert {p.dtype for p in self.decoder.parameters()} == {torch.bfloat16}
            return super().training_step(batch, batch_idx)

    half = {"precision": "bf16-true"}
    first = Run(model, prompts, tmp_path, 2, Looking, updates_per_rollout=2, learner=learner, trainer=half).fit()
    assert types and torch.bfloat16 not in types
    types.clear()
    second = Run(model, prompts, tmp_path, 2, Looking, updates_per_rollout=2, learner=learner, trainer=half)
    second.module = first.module  # a trainer of its own, as after a trial in a notebook
    second.fit()
    assert types and torch.bfloat16 not in types


def test_a_run_cut_short_for_a_trial_validates_at_its_end(model, prompts, tmp_path):
    settings = {"held_out": HeldOut(JsonlSource(prompts)), "trainer": {"val_check_interval": 20}}
    run = Run(model, prompts, tmp_path, 2, **settings).fit()
    assert [samples[0].rollout.weight_version for samples in run.samples["val"]] == [0, 2]


def test_the_rate_is_logged_of_the_step_that_it_was_of(model, prompts, tmp_path):
    run = Run(model, prompts, tmp_path, 3)
    run.module.optimizer = AdamW(1e-3, warmup_ratio=0.0)
    run.fit()
    rates = [run.module.optimizer.factor(step, 3) * 1e-3 for step in range(3)]
    assert run.metrics.of("train/learning_rate") == pytest.approx(rates)


def test_lightnings_own_checkpoints_can_be_written(model, prompts, tmp_path):
    run = Run(model, prompts, tmp_path, 1, save=True)
    run.trainer.callbacks.append(ModelCheckpoint(tmp_path / "not" / "there", "one", every_n_train_steps=1))
    run.fit()
    assert (tmp_path / "not" / "there" / "one.ckpt").exists()


def test_a_divergence_is_not_divided_by_the_length_of_a_sample(model):
    with pytest.raises(UserError, match="its divergence would be divided by its tokens' count"):
        RLOO(str(model), AdamW(1e-3), ratio="sequence", kl=KL(0.1))


def test_only_what_is_learned_from_is_said_to_be(model, prompts, tmp_path):
    held_out = HeldOut(JsonlSource(prompts))
    run = Run(model, prompts, tmp_path, 3, reward=Flat(), dynamic_sampling=2, held_out=held_out).fit()
    learned = [sum(sample.learned for sample in samples) for samples in run.samples["train"]]
    assert learned == [12] * 3 and any(len(samples) > 12 for samples in run.samples["train"])
    assert not any(sample.learned for samples in run.samples["val"] for sample in samples)


class Flat(Letters):
    """All answers to half of the prompts are equally good."""

    def score_batch(self, requests):
        found = super().score_batch(requests)
        return [RewardResult(1.0) if int(r.row["answer"]) % 2 else f for r, f in zip(requests, found, strict=True)]
