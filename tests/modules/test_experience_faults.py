"""What goes wrong while a policy learns costs a sample, or stops the run with one line; never a wrong weight."""

from __future__ import annotations

import json
import logging
import math
from contextlib import contextmanager

import lightning as L
import pytest
import torch
from experience_run import Letters, Run, Unsure, finite, same, write
from fake_judge import FakeJudge
from sorry_reward import Sorry

from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, RewardResult, RewardTable
from lnlit.modules import prompt_data
from lnlit.modules.grpo import GRPO
from lnlit.modules.prompt_data import HeldOut
from lnlit.modules.rloo import RLOO
from lnlit.modules.rpo import RPO
from lnlit.objectives.kl import KL
from lnlit.rewards.llm_judge import LLMJudgeReward
from lnlit.rl import on_policy
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.curriculum import GaussianCurriculum


class Short(BatchReward):
    def score_batch(self, requests):
        return [RewardResult(1.0)] * (len(requests) - 1)


class Raises(BatchReward):
    def score_batch(self, requests):
        raise ConnectionError("nobody there")


@pytest.fixture
def untouched(model) -> dict[str, torch.Tensor]:
    from lnlit.testing.tiny import tiny_decoder

    return dict(tiny_decoder().named_parameters())


# rewards


def test_whatever_a_reward_does_the_run_goes_on_and_counts_it(model, prompts, tmp_path, untouched):
    run = Run(model, prompts, tmp_path, reward=Sorry(), prompts_per_rollout=5, samples_per_prompt=2).fit()
    rows = [int(answer) % 5 for samples in run.drawn() for answer, *_ in samples]
    kinds = {"raised": 0, "timed_out": 1, "none": 2, "not_finite": 3}
    for kind, number in kinds.items():
        assert run.metrics.of(f"train/rewards/letters/{kind}")[-1] == rows.count(number) > 0
    unscorable = [sum(reward == "nan" for *_, reward in samples) / 10 for samples in run.drawn()]
    assert run.metrics.of("train/rewards/unscorable") == pytest.approx(unscorable)
    assert finite(run.weights) and not same(run.weights, untouched)


class Late(BatchReward):
    """Another reward from the second rollout on."""

    def __init__(self, later: BatchReward) -> None:
        self.later, self.calls = later, 0

    def score_batch(self, requests):
        self.calls += 1
        return (self.later if self.calls > 1 else Letters()).score_batch(requests)


@pytest.mark.parametrize(("reward", "kind"), [(Short(), "wrong_length"), (Raises(), "raised")])
@pytest.mark.parametrize(
    ("method", "settings"),
    [(GRPO, {"kl": KL(0.1)}), (GRPO, {"scale_rewards": "batch"}), (RLOO, {}), (RPO, {"beta": 0.1})],
)
def test_where_nothing_can_be_judged_nothing_is_learned(model, prompts, tmp_path, reward, kind, method, settings):
    once = Run(model, prompts, tmp_path, 1, method=method, learner=settings).fit()
    with pytest.warns(UserWarning, match=f"rewards/letters/{kind}, counted from now on; the first: "):
        run = Run(model, prompts, tmp_path, 3, reward=Late(reward), method=method, learner=settings).fit()
    assert same(run.weights, once.weights)
    assert run.metrics.of(f"train/rewards/letters/{kind}") == [12, 24]
    assert run.metrics.of("train/rewards/unscorable") == [0.0, 1.0, 1.0]
    assert run.metrics.of("train/loss_tokens")[1:] == [0, 0]


def test_a_reward_that_never_worked_stops_the_run(model, prompts, tmp_path):
    said = r"none of the first 12 completions could be judged; letters of the first one: ConnectionError: nobody there"
    with pytest.raises(UserError, match=said):
        Run(model, prompts, tmp_path, reward=Raises()).fit()


def test_a_step_without_anything_to_learn_leaves_moments_alone(model, prompts, tmp_path):
    """AdamW would go on in the direction of earlier steps."""
    one = Run(model, prompts, tmp_path, steps=1, reward=Letters()).fit()
    more = Run(model, prompts, tmp_path, steps=3, reward=Letters(lambda number, row: number >= 12)).fit()
    assert same(one.weights, more.weights)


@pytest.mark.parametrize("method", [GRPO, RLOO])
def test_samples_without_a_reward_count_for_nothing(model, prompts, tmp_path, method):
    """Neither in the advantages of the others nor in what a mean is divided by."""
    run = Run(model, prompts, tmp_path, steps=1, method=method, reward=Letters(lambda number, row: number in (1, 5)))
    run.fit()
    (samples,) = run.samples["train"]
    assert [s.advantage for s in samples if math.isnan(s.reward)] == [0.0, 0.0]
    for prompt in (samples[0:3], samples[3:6]):
        known = torch.tensor([[[s.reward] for s in prompt if not math.isnan(s.reward)]])
        table = RewardTable(known, torch.ones(1), torch.ones_like(known[..., 0]), torch.zeros_like(known[..., 0]))
        expected = run.module.algorithm.advantages(table).flatten().tolist()
        assert [s.advantage for s in prompt if not math.isnan(s.reward)] == pytest.approx(expected)
    if method is GRPO:
        learned = sum(len(s.rollout.token_ids) for s in samples if not math.isnan(s.reward))
        assert run.metrics.of("train/loss_tokens") == [learned]


def test_a_prompt_that_cannot_be_judged_teaches_nothing(model, prompts, tmp_path):
    run = Run(model, prompts, tmp_path, steps=1, reward=Letters(lambda number, row: number < 3)).fit()
    (samples,) = run.samples["train"]
    assert all(math.isnan(s.reward) and s.advantage == 0 for s in samples[:3])
    assert run.metrics.of("train/frac_reward_zero_std")[0] >= 0.25
    assert finite(run.weights)
    assert run.metrics.of("train/loss_tokens") == [sum(len(s.rollout.token_ids) for s in samples[3:])]


def test_a_judges_own_reasons_are_logged(model, prompts, tmp_path):
    judge = FakeJudge()
    judge.behave = lambda number, body: (400, b"no") if number % 2 else None
    try:
        run = Run(model, prompts, tmp_path, 1, reward=LLMJudgeReward(judge.url, "judge", retries=0)).fit()
    finally:
        judge.close()
    refused = run.metrics.of("train/rewards/letters/refused")
    assert refused == run.metrics.of("train/rewards/letters/none") and 0 < refused[0] < 12


# the engine


@pytest.mark.parametrize("accumulate", [1, 12])
def test_a_completion_of_unknown_probability_is_not_learned_from(model, prompts, tmp_path, accumulate):
    """Also where it is all that a micro-batch has."""
    engine = Unsure(64, "float32", "cpu", every=6)
    run = Run(model, prompts, tmp_path, engine=engine, trainer={"accumulate_grad_batches": accumulate}).fit()
    assert run.metrics.of("train/sampling/nan_logprobs") == [2.0, 2.0]
    for samples, tokens in zip(run.samples["train"], run.metrics.of("train/loss_tokens"), strict=True):
        assert [s.learned for s in samples] == [number % 6 != 0 for number in range(12)]
        assert tokens == sum(len(s.rollout.token_ids) for s in samples if s.learned)
    assert finite(run.weights)


def test_an_engine_that_knows_no_probability_stops_the_run(model, prompts, tmp_path):
    with pytest.raises(UserError, match=r"after the sync at step 0: the engine gave no log-probs .*finite") as stop:
        Run(model, prompts, tmp_path, engine=Unsure(64, "float32", "cpu", every=1)).fit()
    assert "\n" not in str(stop.value)


def test_a_rank_that_knows_no_probability_goes_on_with_the_others(model, prompts, tmp_path, untouched, monkeypatch):
    """What is told of the other rank: its largest difference, their sum, their number."""
    other = (0.1, 1.0, 10)
    monkeypatch.setattr(on_policy, "all_gather", lambda mine: [mine, other] if isinstance(mine, tuple) else [mine])
    run = Run(model, prompts, tmp_path, engine=Unsure(64, "float32", "cpu", every=1)).fit()
    assert run.metrics.of("train/sampling/logp_difference/max") == pytest.approx([0.1, 0.1])
    assert run.metrics.of("train/sampling/logp_difference/mean") == pytest.approx([0.1, 0.1])
    assert same(run.weights, untouched)


class GivesUp(NativeEngine):
    """Cannot go on in its third rollout."""

    def generate(self, requests, sampling):
        if self._version == 2:
            raise UserError("the engine is broken; buy another one")
        return super().generate(requests, sampling)


def test_an_engine_that_gives_up_stops_the_run_and_leaves_the_checkpoint(model, prompts, tmp_path):
    whole = Run(model, prompts, tmp_path / "whole", 4).fit()
    broken = Run(model, prompts, tmp_path, 4, engine=GivesUp(64, "float32", "cpu"), save=True)
    with pytest.raises(UserError, match="buy another one"):
        broken.fit()
    checkpoints = tmp_path / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-2.ckpt"]
    resumed = Run(model, prompts, tmp_path, 4, save=True, ckpt_path=checkpoints / "step-2.ckpt").fit()
    assert broken.drawn() + resumed.drawn() == whole.drawn()
    assert same(resumed.weights, whole.weights)


class Quantised(NativeEngine):
    needs_correction = True


def test_an_imprecise_engine_needs_a_correction(model, prompts, tmp_path):
    engine = Quantised(64, "float32", "cpu")
    with pytest.raises(UserError, match=r"model\.correction: Quantised computes in another precision"):
        Run(model, prompts, tmp_path, engine=engine, learner={"correction": None}).fit()
    Run(model, prompts, tmp_path, 1, engine=Quantised(64, "float32", "cpu")).fit()


def test_the_engine_sleeps_before_the_policy_comes_back(model, prompts, tmp_path, monkeypatch):
    events = []

    class Noisy(NativeEngine):
        def generate(self, requests, sampling):
            events.append("generate")
            return super().generate(requests, sampling)

        def sleep(self):
            events.append("sleep")
            super().sleep()

    @contextmanager
    def offloaded(policy):
        events.append("leaves")
        yield
        events.append("back")

    monkeypatch.setattr(prompt_data, "offloaded", offloaded)
    Run(model, prompts, tmp_path, 2, engine=Noisy(8, "float32", "cpu"), sleep_engine_while_training=True).fit()
    assert events == 2 * ["leaves", "generate", "sleep", "back"]


@pytest.mark.parametrize("updates", [1, 2])
def test_taking_turns_with_the_memory_changes_nothing(model, prompts, tmp_path, updates):
    held_out = HeldOut(JsonlSource(prompts))
    runs = [
        Run(
            model,
            prompts,
            tmp_path,
            4,
            sleep_engine_while_training=sleeps,
            updates_per_rollout=updates,
            held_out=held_out,
            trainer={"val_check_interval": 1},
        ).fit()
        for sleeps in (False, True)
    ]
    assert runs[0].drawn() == runs[1].drawn() and runs[0].drawn("val") == runs[1].drawn("val")
    assert same(runs[0].weights, runs[1].weights)
    assert runs[1].data.engine._decoder is None


# prompts


def test_long_prompts_are_left_out_and_counted(model, tmp_path, caplog):
    file = write(tmp_path / "prompts.jsonl", ["short " * 2, "long " * 80, "short", "long " * 90])
    with caplog.at_level(logging.INFO):
        run = Run(model, file, tmp_path, prompts_per_rollout=4).fit()
    assert "data.prompts: 2 of 4 rows left out: no prompt, or one of over 250 tokens" in caplog.text
    assert run.metrics.of("train/prompts/left_out")[0] == 2
    assert {answer for samples in run.drawn() for answer, *_ in samples} == {"0", "2"}


class OfTheRow(Letters):
    """Does not know what to make of the rows whose answer it is told."""

    def __init__(self, unknown: str) -> None:
        super().__init__()
        self.unknown = unknown

    def check_row(self, row):
        if row["answer"] in self.unknown:
            raise UserError(f"letters: the answer {row['answer']!r} cannot be read")


def test_rows_that_nothing_can_be_judged_by_are_named_and_left_out(model, tmp_path):
    file = write(tmp_path / "prompts.jsonl", ["one", "two", "three", "four"])
    message = r"1 of 4 rows left out, since.*prompts\.jsonl:2: letters: the answer '1' cannot be read"
    with pytest.warns(UserWarning, match=message):
        run = Run(model, file, tmp_path, prompts_per_rollout=4, rewards=[OfTheRow("1")]).fit()
    assert run.metrics.of("train/prompts/unjudged")[0] == 1
    assert {answer for samples in run.drawn() for answer, *_ in samples} == {"0", "2", "3"}
    with pytest.raises(UserError, match=r"data\.prompts: 4 of 4 rows cannot be judged whatever"):
        Run(model, file, tmp_path / "none", rewards=[OfTheRow("0123")]).fit()


def test_prompts_that_are_all_too_long_are_refused(model, tmp_path):
    file = write(tmp_path / "prompts.jsonl", ["long " * 80] * 3)
    with pytest.raises(UserError, match=r"data\.prompts: none of 3 rows has a prompt of at most 250 tokens"):
        Run(model, file, tmp_path).fit()


class SomeFlat(Letters):
    """All answers to two thirds of the prompts are equally good."""

    def score_batch(self, requests):
        found = super().score_batch(requests)
        flat = [int(request.row["answer"]) % 3 > 0 for request in requests]
        return [RewardResult(1.0) if same else result for same, result in zip(flat, found, strict=True)]


def test_prompts_that_teach_nothing_are_drawn_anew(model, prompts, tmp_path):
    learned: list[int] = []

    class Counting(GRPO):
        def training_step(self, batch, batch_idx):
            learned.append(batch.samples)
            return super().training_step(batch, batch_idx)

    def begin(root, steps, **settings):
        return Run(
            model, prompts, root, steps, Counting, SomeFlat(), dynamic_sampling=2, updates_per_rollout=2, **settings
        )

    whole = begin(tmp_path / "whole", 6, save=True).fit()
    assert learned == [6] * 6
    resampled = whole.metrics.of("train/resampled")[::2]
    assert [len(samples) // 3 - 4 for samples in whole.drawn()] == resampled and max(resampled) > 0
    flat = [[s.advantage for s in samples if s.advantage == 0] for samples in whole.samples["train"]]
    assert any(flat)
    seeds = [s.rollout.seed for samples in whole.samples["train"] for s in samples]
    assert len(set(seeds)) == len(seeds)
    assert begin(tmp_path / "again", 6).fit().drawn() == whole.drawn()
    for stop in (2, 3):
        root = tmp_path / f"stopped-{stop}"
        first = begin(root, stop, save=True).fit()
        rest = begin(root, 6, save=True, ckpt_path=root / "checkpoints" / f"step-{stop}.ckpt").fit()
        assert first.drawn() + rest.drawn() == whole.drawn()
        assert same(rest.weights, whole.weights)


class StopAt(L.Callback):
    """As Ctrl-C does: the run is told to stop, and how long it was to be does not change."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args, **kwargs):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


def test_a_curriculum_goes_on_where_it_was(model, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}], "answer": str(n), "pass_rate": n / 30}
        for n in range(30)
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def begin(root, steps, **settings):
        order = GaussianCurriculum(levels=6)
        run = Run(
            model, str(file), root, 6, reward=SomeFlat(), prompt_order=order, dynamic_sampling=1, save=True, **settings
        )
        run.trainer.callbacks.append(StopAt(steps))
        return run.fit()

    whole = begin(tmp_path / "whole", 6)
    rates = [sum(int(answer) for answer, *_ in samples) / len(samples) for samples in whole.drawn()]
    assert sum(rates[:3]) > sum(rates[3:])
    first = begin(tmp_path / "parts", 3)
    rest = begin(tmp_path / "parts", 6, ckpt_path=tmp_path / "parts" / "checkpoints" / "step-3.ckpt")
    assert first.drawn() + rest.drawn() == whole.drawn()
    assert same(rest.weights, whole.weights)


def test_a_run_that_cannot_be_is_refused_before_anything_is_sampled(model, prompts, tmp_path):
    held_out = HeldOut(JsonlSource(prompts))
    run = Run(model, prompts, tmp_path, held_out=held_out, trainer={"accumulate_grad_batches": 13})
    with pytest.raises(UserError, match="13 micro-batches"):
        run.fit()
    assert run.drawn("val") == []


# held-out prompts


def test_held_out_prompts_are_answered_alike_each_time_and_disturb_nothing(model, prompts, tmp_path):
    held_out = HeldOut(JsonlSource(write(tmp_path / "held.jsonl", [f"tell {n}" for n in range(3)])), 2)
    without = Run(model, prompts, tmp_path, 4, updates_per_rollout=2, trainer={"limit_val_batches": 0}).fit()
    run = Run(
        model, prompts, tmp_path, 4, updates_per_rollout=2, held_out=held_out, trainer={"val_check_interval": 1}
    ).fit()
    assert same(run.weights, without.weights)
    assert run.drawn() == without.drawn()
    assert len(run.drawn("val")) == 5  # one is Lightning's check before the first step
    versions = [{s.rollout.weight_version for s in samples} for samples in run.samples["val"]]
    assert versions == [{0}, {1}, {2}, {3}, {4}]
    assert len({tuple(s.rollout.seed for s in samples) for samples in run.samples["val"]}) == 1
    means = [sum(s.reward for s in samples) / 6 for samples in run.samples["val"][1:]]
    assert run.metrics.of("val/reward") == pytest.approx(means)
    assert run.metrics.of("val/rewards/letters/mean") == pytest.approx(means)
    assert {*run.metrics.of("val/completions/max_length")} <= set(range(7))


def test_metrics_of_a_rollout_are_logged_with_its_first_step(model, prompts, tmp_path):
    """Whatever the number of micro-batches: the first of them carries the metrics, the last is what is logged."""
    run = Run(model, prompts, tmp_path, 4, updates_per_rollout=2, trainer={"accumulate_grad_batches": 2}).fit()
    means = [sum(s.reward for s in samples) / 12 for samples in run.samples["train"]]
    assert run.metrics.of("train/reward")[::2] == pytest.approx(means)
