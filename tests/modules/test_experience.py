"""A policy's batches: fresh weights for every rollout, each sample once, and the same after a kill."""

from __future__ import annotations

import multiprocessing

import lightning as L
import pytest
import torch
from experience_run import rollout
from lightning.pytorch.loggers import TensorBoardLogger

from lnlit.callbacks.checkpoints import Checkpoint
from lnlit.callbacks.samples import SampleGenerations
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, Reward, RewardRequest, RewardResult
from lnlit.models.lora import LoRA
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import LogprobCheck, PromptData, Weighted
from lnlit.modules.rloo import RLOO
from lnlit.objectives.kl import KL
from lnlit.rl import collector
from lnlit.rl.batch import pack
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.curriculum import GaussianCurriculum
from lnlit.testing.tiny import tiny_folder


def share(text: str) -> float:
    """The share of lower-case letters."""
    return sum(letter.islower() for letter in text) / max(len(text), 1)


class Letters(BatchReward):
    """Judged in the trainer's process: one of its own takes longer to start than these runs take."""

    def score_batch(self, requests):
        return [RewardResult(share(request.completion)) for request in requests]


class LettersApart(Reward):
    """Judged in a process of its own."""

    def score(self, request: RewardRequest) -> float:
        return share(request.completion)


class Recorded(PromptData):
    """Remembers every rollout's samples, and what the step was."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.seen = []
        self.listeners.append(self.remember)

    def remember(self, stage, samples) -> None:
        step = self.trainer.global_step
        self.seen.append([(step, s.rollout.weight_version, s.rollout.token_ids, s.reward) for s in samples])


def data(model, prompts, kind=Recorded, **settings) -> Recorded:
    sizes = rollout(settings, 8)
    engine = settings.pop("engine", None) or NativeEngine(8, "float32", "cpu")
    reward = Weighted(settings.pop("reward", Letters()), name="letters")
    return kind(str(model), JsonlSource(prompts), [reward], engine, sizes, **settings)


def trainer(root, steps: int, **settings) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=root,
        logger=settings.pop("logger", False),
        enable_checkpointing="callbacks" in settings,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=settings.pop("callbacks", []),
        **settings,
    )


def policy(model, kind=GRPO, rate=1e-3, **settings):
    return kind(str(model), AdamW(rate, schedule="constant", warmup_ratio=0.0), **settings)


@pytest.mark.parametrize(("updates", "accumulate"), [(1, 1), (2, 1), (2, 2)])
def test_every_rollout_is_of_the_newest_weights(model, prompts, tmp_path, updates, accumulate):
    experience = data(model, prompts, updates_per_rollout=updates)
    trainer(tmp_path, 4, accumulate_grad_batches=accumulate).fit(policy(model), experience)
    steps = [samples[0][:2] for samples in experience.seen]
    assert steps == [(step, step) for step in range(0, 4, updates)]


def test_a_sample_is_learned_from_once(model, prompts, tmp_path):
    learned = []

    class Counting(GRPO):
        def training_step(self, batch, batch_idx):
            learned.append(batch)
            return super().training_step(batch, batch_idx)

    experience = data(model, prompts, updates_per_rollout=2)
    trainer(tmp_path, 2, accumulate_grad_batches=3).fit(policy(model, Counting), experience)
    assert len(learned) == 6
    assert sum(batch.samples for batch in learned) == 12
    sampled = sorted(token for samples in experience.seen for _, _, tokens, _ in samples for token in tokens)
    labels = [batch.tokens.labels[batch.tokens.labels >= 0].tolist() for batch in learned]
    assert sorted(token for tokens in labels for token in tokens) == sampled
    assert [batch.old_N is None for batch in learned] == [True] * 3 + [False] * 3


def test_a_sample_is_packed_once(model, prompts, tmp_path, monkeypatch):
    """For the reference, for the second update's old log-probs and for the step; the engine's proof has its own."""
    packed = []
    monkeypatch.setattr(collector, "pack", lambda samples, *rest: packed.append(len(samples)) or pack(samples, *rest))
    trainer(tmp_path, 4, accumulate_grad_batches=2).fit(
        policy(model, kl=KL(0.1)), data(model, prompts, updates_per_rollout=2)
    )
    assert len(packed) == 8 and sum(packed) == 24


def test_token_tensors_follow_the_labels(model, prompts, tmp_path):
    """On the first update the engine's log-probs, token by token, are the trainer's."""
    differences = []

    class Comparing(GRPO):
        def training_step(self, batch, batch_idx):
            found = self.token_log_probs(batch.tokens).log_probs_N.detach()
            differences.append((found - batch.engine_N).abs().max().item())
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, 3).fit(policy(model, Comparing), data(model, prompts))
    assert max(differences) < 1e-4


@pytest.mark.parametrize("kind", [GRPO, RLOO])
def test_the_reward_rises(model, prompts, tmp_path, kind):
    experience = data(model, prompts, prompts_per_rollout=8, samples_per_prompt=4)
    trainer(tmp_path, 25).fit(policy(model, kind, rate=3e-3), experience)
    means = [sum(reward for *_, reward in samples) / len(samples) for samples in experience.seen]
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.1


def run(model, prompts, root, steps, ckpt_path=None, **settings):
    module, experience = policy(model, kl=KL(0.1)), data(model, prompts, updates_per_rollout=2, **settings)
    trainer(root, steps, callbacks=[Checkpoint(1)]).fit(module, experience, ckpt_path=ckpt_path, weights_only=False)
    return {name: p.clone() for name, p in module.decoder.named_parameters()}, experience.seen


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_goes_on_equals_one_that_never_stopped(model, prompts, tmp_path, stop):
    whole, seen = run(model, prompts, tmp_path / "whole", 6)
    _, before = run(model, prompts, tmp_path / "parts", stop)
    checkpoint = tmp_path / "parts" / "checkpoints" / f"step-{stop}.ckpt"
    resumed, after = run(model, prompts, tmp_path / "parts", 6, checkpoint)
    assert before + after == seen
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


class SaveAmid(L.Callback):
    """Saves after the first of a step's two micro-batches, as a time limit may."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == 2:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/amid.ckpt")


def test_a_step_that_was_half_done_is_done_again(model, prompts, tmp_path):
    whole = policy(model)
    trainer(tmp_path, 3, accumulate_grad_batches=2, callbacks=[SaveAmid()]).fit(whole, data(model, prompts))
    rest = policy(model)
    trainer(tmp_path, 3, accumulate_grad_batches=2).fit(
        rest, data(model, prompts), ckpt_path=tmp_path / "amid.ckpt", weights_only=False
    )
    for name, value in whole.decoder.named_parameters():
        assert torch.equal(value, dict(rest.decoder.named_parameters())[name]), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples_per_prompt": 2}, "with samples_per_prompt: 3, this run has 2"),
        ({"prompt_order": GaussianCurriculum()}, "with prompt_order: Uniform, this run has GaussianCurriculum"),
    ],
)
def test_samples_of_other_settings_are_not_learned_from(model, prompts, tmp_path, change, says):
    run(model, prompts, tmp_path, 1)
    with pytest.raises(UserError, match=says):
        run(model, prompts, tmp_path, 2, tmp_path / "checkpoints" / "step-1.ckpt", **change)


def test_dropout_is_refused(model):
    with pytest.raises(UserError, match=r"lora\.dropout"):
        policy(model, lora=LoRA(dropout=0.1))


class Forgetful(NativeEngine):
    """Takes the first weights and no later ones."""

    def load_weights(self, weights):
        if self._decoder is None:
            super().load_weights(weights)
        self._version = weights.version

    def sleep(self):
        pass


def test_an_engine_with_old_weights_stops_the_run_and_its_processes(model, prompts, tmp_path):
    before = set(multiprocessing.active_children())
    engine = Forgetful(8, "float32", "cpu")
    experience = data(
        model, prompts, engine=engine, reward=LettersApart(), logprob_check=LogprobCheck(max_difference=1e-3)
    )
    with pytest.raises(UserError, match="after the sync at step 1: engine and trainer disagree"):
        trainer(tmp_path, 3).fit(policy(model, rate=1e-2), experience)
    assert set(multiprocessing.active_children()) == before
    assert experience.engine._decoder is None


class Told(NativeEngine):
    """Remembers how it was told to sample."""

    def generate(self, requests, sampling):
        self.sampling = sampling
        return super().generate(requests, sampling)


def test_a_policy_is_sampled_from_its_full_distribution(model, prompts, tmp_path):
    engine = Told(8, "float32", "cpu")
    trainer(tmp_path, 1).fit(policy(model, temperature=0.7), data(model, prompts, engine=engine))
    assert (engine.sampling.temperature, engine.sampling.top_p) == (0.7, 1.0)


def test_samples_can_be_watched(model, prompts, tmp_path):
    board = TensorBoardLogger(tmp_path)
    callbacks = [SampleGenerations(max_new_tokens=4)]
    trainer(tmp_path, 1, logger=board, callbacks=callbacks).fit(policy(model), data(model, prompts))
    assert callbacks[0].prompts == ["say 0", "say 1"]


def test_masked_completions_are_not_learned_from_but_judged(model, prompts, tmp_path):
    batches = []

    class Seen(GRPO):
        def training_step(self, batch, batch_idx):
            batches.append(batch)
            return super().training_step(batch, batch_idx)

    experience = data(model, prompts, mask_truncated=True)
    trainer(tmp_path, 1).fit(policy(model, Seen), experience)
    cut = [tokens for samples in experience.seen for _, _, tokens, _ in samples if len(tokens) == 8]
    assert cut, "this seed has no truncated completion"
    learned = sum(len(batch.sample_N) for batch in batches)
    sampled = sum(len(tokens) for samples in experience.seen for _, _, tokens, _ in samples)
    assert learned == sampled - 8 * len(cut)
    assert batches[0].metrics["reward"] > 0


def test_a_masked_completion_pays_for_its_divergence_like_its_siblings(model, prompts, tmp_path):
    seen = []
    experience = data(model, prompts, mask_truncated=True)
    experience.listeners.append(lambda stage, samples: seen.append(samples))
    other = str(tiny_folder(tmp_path / "other", seed=1))
    trainer(tmp_path, 1).fit(policy(model, RLOO, kl=KL(10.0, "k1", "reward"), reference=other), experience)
    (samples,) = seen
    assert any(not s.learned and (s.old_log_probs - s.reference_log_probs).sum().abs() > 0.1 for s in samples)
    paid = torch.tensor([s.reward - 10 * (s.old_log_probs - s.reference_log_probs).sum().item() for s in samples]).view(
        -1, 3
    )
    expected = (paid - (paid.sum(1, keepdim=True) - paid) / 2).flatten().tolist()
    assert [sample.advantage for sample in samples] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples_per_prompt": 0}, "expected a positive number"),
        ({"updates_per_rollout": 5}, "cannot be spread over 5"),
        ({"max_new_tokens": 0}, "data.rollout.max_new_tokens"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, prompts, settings, message):
    with pytest.raises(UserError, match=message):
        data(model, prompts, **settings)


def test_a_sample_without_siblings_is_refused_where_it_is_judged_by_them(model, prompts, tmp_path):
    with pytest.raises(UserError, match="judged by its siblings, so 2 or more; got 1"):
        trainer(tmp_path, 1).fit(policy(model), data(model, prompts, samples_per_prompt=1))


def test_an_endless_run_is_refused(model, prompts, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        trainer(tmp_path, -1, max_epochs=1).fit(policy(model), data(model, prompts))


def test_more_micro_batches_than_samples_are_refused(model, prompts, tmp_path):
    with pytest.raises(
        UserError, match="13 micro-batches, 13 on each of 1 ranks, cannot be made of an update's 12 samples"
    ):
        trainer(tmp_path, 1, accumulate_grad_batches=13).fit(policy(model), data(model, prompts))


def test_a_reward_is_logged_as_given(model, prompts, tmp_path):
    """What the divergence takes from it is the policy's affair."""
    experience = data(model, prompts, updates_per_rollout=2)
    logged = []

    class Noting(RLOO):
        def training_step(self, batch, batch_idx):
            logged.extend([batch.metrics["reward"]] if batch.metrics else [])
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, 4).fit(policy(model, Noting, rate=1e-2, kl=KL(5.0, "k1", "reward")), experience)
    assert len(logged) == len(experience.seen) == 2
    for reward, samples in zip(logged, experience.seen, strict=True):
        given = [reward for *_, reward in samples]
        assert reward == pytest.approx(sum(given) / len(given))
