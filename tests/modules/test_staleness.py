"""One step off policy: a rollout is drawn while the one before is learned from, by weights that its samples know."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
import warm
from experience_run import Letters, Run, same

from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import RewardResult
from lnlit.models.build import build_decoder
from lnlit.modules.grpo import GRPO
from lnlit.modules.prompt_data import HeldOut, LogprobCheck, RolloutConfig
from lnlit.objectives.kl import KL
from lnlit.rl.batch import pack
from lnlit.rollout.apart import EngineApart
from lnlit.rollout.log_probs import token_log_probs
from lnlit.rollout.native import NativeEngine
from lnlit.testing.rollout_contract import check_rollout_engine

SCRIPT = Path(__file__).with_name("stale_until_killed.py")


class InThread(NativeEngine):
    """Generates in a thread of the trainer's process, by its own copy of the weights. Quicker to start than another
    process, and as far from the trainer's weights."""

    runs_apart = True


#: A tiny model learns much from one rollout, which the check counts as difference.
LENIENT = LogprobCheck(mean_difference=1.0, max_difference=10.0)


def stale(model, prompts, root, steps, method=GRPO, **settings) -> Run:
    engine = settings.pop("engine", None) or InThread(64, "float32", "cpu")
    return Run(model, prompts, root, steps, method, engine=engine, max_staleness=1, logprob_check=LENIENT, **settings)


class Versions(L.Callback):
    """Keeps the weights at every step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        state = pl_module.decoder.state_dict()
        self.weights.setdefault(pl_module.global_step, {name: value.clone() for name, value in state.items()})


@pytest.mark.parametrize(("updates", "versions"), [(1, [0, 0, 1, 2]), (2, [0, 0, 2, 4])])
def test_a_rollout_is_of_the_weights_before_the_last_ones_updates(model, prompts, tmp_path, updates, versions):
    run = stale(model, prompts, tmp_path, 4 * updates, updates_per_rollout=updates)
    run.fit()
    drawn = [{sample.rollout.weight_version for sample in samples} for samples in run.samples["train"]]
    assert drawn == [{version} for version in versions]
    logged = run.metrics.of("train/sampling/staleness")[::updates]  # Lightning repeats it until there is a new one
    assert logged == [0.0] + [float(updates)] * 3
    assert run.data.collector._ahead is None  # none was begun that nobody learns from


def test_samples_are_compared_with_the_weights_that_drew_them(model, prompts, tmp_path):
    versions, batches = Versions(), []

    class Seen(GRPO):
        def training_step(self, batch, batch_idx):
            batches.append(batch)
            return super().training_step(batch, batch_idx)

    run = stale(model, prompts, tmp_path, 4, Seen, updates_per_rollout=2)
    run.trainer.callbacks.append(versions)
    run.fit()
    decoder, furthest = build_decoder(run.module.decoder.spec, "cpu"), 0.0
    for samples in run.samples["train"]:
        packed = pack(samples, [True] * len(samples), 0)
        old_N = packed.join([sample.old_log_probs for sample in samples])
        found = {}
        for version in (samples[0].rollout.weight_version, 3):
            decoder.load_state_dict(versions.weights[version])
            with torch.no_grad():
                found[version] = token_log_probs(decoder.eval(), packed.tokens).log_probs_N
        drawn_N, newest_N = found.values()
        torch.testing.assert_close(old_N, drawn_N, rtol=0, atol=1e-5)
        furthest = max(furthest, (newest_N - drawn_N).abs().max().item())
    assert furthest > 1e-3  # or nothing would be told apart
    assert all(torch.equal(batch.old_N, batch.engine_N) for batch in batches)


def test_none_is_what_a_run_was_before(model, prompts, tmp_path):
    runs = [Run(model, prompts, tmp_path, 3, updates_per_rollout=2, **kind) for kind in ({}, {"max_staleness": 0})]
    assert same(runs[0].fit().weights, runs[1].fit().weights)
    assert runs[0].drawn() == runs[1].drawn()
    assert runs[0].data.collector.state_dict(0).keys() == {"format", "rollouts", "order", "pending"}


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_goes_on_with_samples_that_were_in_flight(model, prompts, tmp_path, updates, stop):
    settings = {"updates_per_rollout": updates, "save": True, "learner": {"kl": KL(0.1)}}
    whole = stale(model, prompts, tmp_path / "whole", 6, **settings).fit()
    before = stale(model, prompts, tmp_path / "parts", 6, **settings)
    before.trainer.callbacks.append(Stop(stop))
    before.fit()
    checkpoint = tmp_path / "parts" / "checkpoints" / f"step-{stop}.ckpt"
    saved = torch.load(checkpoint, weights_only=True)[type(before.data).__qualname__]
    assert [len(group) for group in saved["ahead"]["drawn"]] == [3] * 4
    after = stale(model, prompts, tmp_path / "parts", 6, ckpt_path=checkpoint, **settings).fit()
    assert before.drawn() + after.drawn() == whole.drawn()
    assert same(after.weights, whole.weights)


class Stop(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def test_validation_takes_the_engine_and_changes_nothing(model, prompts, tmp_path):
    settings = {"updates_per_rollout": 2}
    alone = stale(model, prompts, tmp_path, 6, **settings).fit()
    often = {"val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    held_out = HeldOut(JsonlSource(prompts))
    run = stale(model, prompts, tmp_path, 6, trainer=often, held_out=held_out, **settings).fit()
    assert same(run.weights, alone.weights) and run.drawn() == alone.drawn()
    assert [samples[0].rollout.weight_version for samples in run.samples["val"]] == [1, 2, 3, 4, 5, 6]


class Flat(Letters):
    """All answers to half of the prompts are equally good."""

    def score_batch(self, requests):
        found = super().score_batch(requests)
        return [RewardResult(1.0) if int(r.row["answer"]) % 2 else f for r, f in zip(requests, found, strict=True)]


def test_what_is_drawn_in_place_of_others_is_of_the_newest_weights(model, prompts, tmp_path):
    run = stale(model, prompts, tmp_path, 3, dynamic_sampling=2, reward=Flat()).fit()
    versions = [[sample.rollout.weight_version for sample in samples] for samples in run.samples["train"]]
    assert [version[:12] for version in versions] == [[0] * 12, [0] * 12, [1] * 12]
    assert versions[2][12:] and set(versions[2][12:]) == {2}
    assert run.metrics.of("train/sampling/staleness")[2] == pytest.approx(12 / len(versions[2]))


def test_ten_kills_with_samples_in_flight_change_nothing(model, prompts, tmp_path):
    for name, kills in (("whole", 0), ("killed", 10)):
        folder, ended = tmp_path / name, []
        folder.mkdir()
        while not (folder / "weights.pt").exists():
            done = warm.run(SCRIPT, folder, str(model), prompts, "12", str(kills), cwd=folder, timeout=120)
            ended.append(done.returncode)
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
        assert ended == [-signal.SIGKILL] * kills + [0]
    whole, killed = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "killed"))
    assert same(whole, killed)


def test_a_run_with_another_staleness_does_not_go_on(model, prompts, tmp_path):
    run = stale(model, prompts, tmp_path, 3, save=True)
    run.trainer.callbacks.append(Stop(1))
    run.fit()
    checkpoint = tmp_path / "checkpoints" / "step-1.ckpt"
    with pytest.raises(UserError, match="were drawn with 1, this run has 0"):
        Run(model, prompts, tmp_path, 3, ckpt_path=checkpoint).fit()
    Run(model, prompts, tmp_path / "0", 1, save=True).fit()
    with pytest.raises(UserError, match="with max_staleness: None, this run has 1"):
        stale(model, prompts, tmp_path, 3, ckpt_path=tmp_path / "0" / "checkpoints" / "step-1.ckpt").fit()


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(UserError, match=r"data.rollout.max_staleness: expected 0 or 1, got 2"):
        RolloutConfig(4, 3, 6, max_staleness=2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"max_staleness: .* sleep_engine_while_training has it asleep"):
        RolloutConfig(4, 3, 6, max_staleness=1, sleep_engine_while_training=True)


# an engine in a process of its own


def test_an_engine_apart_is_an_engine():
    check_rollout_engine(lambda: EngineApart(NativeEngine(8, "float32", "cpu")))


def test_a_run_with_an_engine_apart_equals_one_in_a_thread(model, prompts, tmp_path):
    before = set(multiprocessing.active_children())
    thread = stale(model, prompts, tmp_path, 4, updates_per_rollout=2).fit()
    native = NativeEngine(64, "float32", "cpu")
    apart = stale(model, prompts, tmp_path, 4, updates_per_rollout=2, engine=native).fit()
    assert same(thread.weights, apart.weights) and thread.drawn() == apart.drawn()
    assert set(multiprocessing.active_children()) == before
