"""What a run keeps of its rollouts: every sample, numbers, text and a page; and how a resumed run goes on with them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lnlit.callbacks import Checkpoint, RolloutLog, SampleGenerations, Throughput
from lnlit.callbacks.boards import log_pictures
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, PolicyBatch, PreferenceBatch, RewardResult, TokenBatch
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.modules.prompt_data import HeldOut, PromptData, RolloutConfig, Weighted
from lnlit.report.picture import Picture
from lnlit.report.rollouts import page
from lnlit.report.theme import new_figure
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.history import History
from lnlit.sampling.sample import Sample
from lnlit.testing.tiny import tiny_folder


class Letters(BatchReward):
    """The share of lower-case letters."""

    def score_batch(self, requests):
        texts = [request.completion for request in requests]
        return [RewardResult(sum(letter.islower() for letter in text) / max(len(text), 1)) for text in texts]


class Short(BatchReward):
    def score_batch(self, requests):
        return [
            RewardResult(None if "3" in request.messages[-1]["content"] else -float(len(request.completion)))
            for request in requests
        ]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"say {n}"}], "pass_rate": n / 10} for n in range(10)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def fit(model, prompts, root, steps, ckpt_path=None, log=None, held_out=True, logger=False, **settings) -> list:
    """Runs GRPO; returns (stage, step, samples) of each rollout."""
    experience = PromptData(
        str(model),
        JsonlSource(prompts),
        [Weighted(Letters()), Weighted(Short(), 0.1)],
        NativeEngine(8, "float32", "cpu"),
        RolloutConfig(4, 3, max_new_tokens=8, updates_per_rollout=2, reward_workers=1),
        held_out=HeldOut(JsonlSource(prompts), 2) if held_out else None,
    )
    drawn = []
    experience.listeners.append(lambda stage, samples: drawn.append((stage, trainer.global_step, samples)))
    log = log or RolloutLog()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=root,
        logger=logger,
        callbacks=[log, Checkpoint(1), *settings.pop("callbacks", [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"val_check_interval": 2, "check_val_every_n_epoch": None} | settings,
    )
    policy = GRPO(str(model), AdamW(1e-3, schedule="constant", warmup_ratio=0.0))
    trainer.fit(policy, experience, ckpt_path=ckpt_path, weights_only=False)
    assert experience.listeners[1:] == []
    return drawn


def same(found: Sample, given: Sample) -> bool:
    unjudged = math.isnan(found.reward) and math.isnan(given.reward)
    return vars(found) == vars(given) | ({"reward": found.reward} if unjudged else {})


def contents(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (root / "rollouts").glob("*.parquet")}


def numbers(root: Path) -> list:
    history = History(root / "rollouts")
    entries = [*history.entries("train"), *history.entries("val")]
    return [(entry.stage, entry.step, entry.rollout, entry.samples, entry.numbers) for entry in entries]


@pytest.fixture(scope="module")
def whole(model, prompts, tmp_path_factory) -> tuple[Path, list, TensorBoardLogger]:
    root = tmp_path_factory.mktemp("whole")
    board = TensorBoardLogger(root)
    return root, fit(model, prompts, root, 6, logger=board, callbacks=[Throughput()], log_every_n_steps=1), board


def test_a_run_keeps_every_sample(whole):
    root, drawn, _ = whole
    assert {(stage, step) for stage, step, _ in drawn} == {
        *(("train", step) for step in (0, 2, 4)),
        *(("val", step) for step in (0, 2, 4, 6)),
    }
    history = History(root / "rollouts")
    for stage, step, samples in drawn:
        found = history.samples(stage, step)
        assert len(found) == len(samples) > 0
        for kept, given in zip(found, samples, strict=True):
            assert same(kept, replace(given, old_log_probs=None, reference_log_probs=None))
    assert sum(math.isnan(s.reward) for *_, samples in drawn for s in samples) > 0


def test_a_run_has_numbers_and_a_page(whole):
    root, *_ = whole
    history = History(root / "rollouts")
    entries = history.entries("train")
    assert [(entry.step, entry.rollout, entry.samples) for entry in entries] == [(0, 1, 12), (2, 2, 12), (4, 3, 12)]
    assert all({"generate", "reward", "score", "train"} <= set(entry.seconds) for entry in entries)
    assert all({"sync", "generate", "reward"} <= set(entry.seconds) for entry in history.entries("val")), (
        "it comes first"
    )
    assert all(value > 0 for entry in (*entries, *history.entries("val")) for value in entry.seconds.values())
    text = (root / "rollouts.html").read_text(encoding="utf-8")
    assert text == page(history)
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    assert "3 rollouts of 36 samples in all and 4 validations, to step 6" in text


def test_tensorboard_has_text_and_the_curves_that_are_not_drawn_here(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, _, board = whole
    events = EventAccumulator(board.log_dir).Reload()
    texts = {tag for tag in events.Tags()["tensors"] if tag.startswith("rollouts/")}
    assert texts == {f"rollouts/{stage}/{number}/text_summary" for stage in ("train", "val") for number in range(3)}
    assert [event.step for event in events.Tensors("rollouts/val/0/text_summary")] == [0, 2, 4, 6]
    said = events.Tensors("rollouts/train/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "**best: reward" in said and "**worst: reward" in said
    assert set(events.Tags()["images"]) == {
        *("rollouts/mean reward", "rollouts/share from which nothing can be learned"),
        *("rollouts/mean length", "rollouts/share that was cut off", "rollouts/seconds of each rollout"),
        *("rollouts/reward by difficulty, training", "rollouts/reward by difficulty, held out"),
    }
    assert [(image.step, image.width > 800) for image in events.Images("rollouts/mean reward")] == [(6, True)]
    scalars = set(events.Tags()["scalars"])
    assert {f"val/reward/pass_rate_{low:.2f}-{low + 0.25:.2f}" for low in (0, 0.25, 0.5, 0.75)} <= scalars
    assert any(tag.startswith("train/reward/pass_rate_") for tag in scalars)
    assert "perf/tokens_per_s" in scalars


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Pages without pictures: these take a second for each page."""
    monkeypatch.setattr("lnlit.report.picture.Picture.svg", lambda picture: f"<svg>{picture.name}</svg>")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_continues_its_history(whole, model, prompts, tmp_path, stop):
    fit(model, prompts, tmp_path, stop)
    if stop == 3:  # what a run left that went further than its last checkpoint
        history = History(tmp_path / "rollouts")
        history.add_samples("train", 40, history.samples("train", 0), keep=100)
    fit(model, prompts, tmp_path, 6, ckpt_path=tmp_path / "checkpoints" / f"step-{stop}.ckpt")
    assert contents(tmp_path) == contents(whole[0])
    assert numbers(tmp_path) == numbers(whole[0])
    assert (tmp_path / "rollouts.html").read_text(encoding="utf-8") == page(History(tmp_path / "rollouts"))


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_refused_leaves_an_earlier_ones_files(model, prompts, tmp_path):
    fit(model, prompts, tmp_path, 2)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="is of an earlier run"):
        fit(model, prompts, tmp_path, 4)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("undrawn")
def test_fewer_rollouts_are_kept_where_fewer_are_wanted(model, prompts, tmp_path):
    fit(model, prompts, tmp_path, 8, log=RolloutLog(every_n_rollouts=2), held_out=False)
    history = History(tmp_path / "rollouts")
    assert history.steps("train") == [0, 4]
    assert [entry.step for entry in history.entries("train")] == [0, 2, 4, 6]
    assert (tmp_path / "rollouts.html").exists()


def test_the_first_rollout_and_the_newest_are_kept(whole, tmp_path):
    samples = History(whole[0] / "rollouts").samples("train", 0)
    history = History(tmp_path)
    for step in range(10):
        history.add_samples("train", step, samples, keep=5)
        assert history.steps("train") == ([*range(step + 1)] if step < 5 else [0, *range(step - 3, step + 1)])


@pytest.mark.parametrize("settings", [{"every_n_rollouts": 0}, {"keep": 1}, {"num_prompts": -1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError, match="RolloutLog: needs"):
        RolloutLog(**settings)


def test_a_run_without_rollouts_is_refused():
    trainer = SimpleNamespace(datamodule=SimpleNamespace())
    with pytest.raises(UserError, match="no rollouts to keep, the data are SimpleNamespace"):
        RolloutLog().on_fit_start(trainer, None)


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_fails_has_its_page_and_tells_why(model, prompts, tmp_path):
    class Failing(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fit(model, prompts, tmp_path, 6, callbacks=[Failing()])
    history = History(tmp_path / "rollouts")
    assert history.steps("train") == [0, 2] and history.entries("train")[-1].seconds["train"] > 0
    assert (tmp_path / "rollouts.html").read_text(encoding="utf-8") == page(history)


def test_other_ranks_write_nothing(tmp_path):
    data, log = SimpleNamespace(listeners=[], phases=None), RolloutLog()
    trainer = SimpleNamespace(datamodule=data, fast_dev_run=0, is_global_zero=False, default_root_dir=tmp_path)
    log.on_fit_start(trainer, None)
    log.on_train_batch_start(trainer, None, None, 0)
    log.on_train_batch_end(trainer, None, None, None, 0)
    trainer.sanity_checking = False
    log.on_validation_end(trainer, None)
    log.on_fit_end(trainer, None)
    assert data.listeners == [] and not list(tmp_path.iterdir())


def test_a_logger_that_takes_images_gets_them(tmp_path):
    class Board(CSVLogger):
        def log_image(self, key, images, step=None):
            given.append((key, images[0].shape, step))

    given = []
    drawn = [Picture("empty", "", "", lambda theme: new_figure(2, 1))]
    log_pictures([CSVLogger(tmp_path), Board(tmp_path)], "rollouts", drawn, 7)
    assert given == [("rollouts/empty", (150, 300, 3), 7)]


# other callbacks in such runs


@pytest.mark.parametrize("kind", ["tokens", "policy", "preference"])
def test_speed_is_shown_for_every_kind_of_batch(kind):
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    batch = TokenBatch(tokens, tokens, tokens, [8, 8])
    if kind == "policy":
        batch = PolicyBatch(batch, tokens[0], 1, tokens[0].float())
    elif kind == "preference":
        batch = PreferenceBatch(batch, tokens[0], torch.zeros(1, 1))
    logged = {}
    module = SimpleNamespace(
        data_parallel_size=lambda: 1,
        device=torch.device("cpu"),
        log_dict=logged.update,
        log=lambda name, value, **_: logged.update({name: value}),
    )
    speed = Throughput()
    speed.on_train_batch_start(None, module, batch, 0)
    speed.on_train_batch_end(None, module, None, batch, 0)
    assert logged["tok/s"] == logged["perf/tokens_per_s"] > 0


def test_a_reward_model_is_not_asked_to_write(model, tmp_path):
    from lnlit.data.chat import ChatEncoder
    from lnlit.data.tokenizer import load_tokenizer

    data = SimpleNamespace(encoder=ChatEncoder(load_tokenizer(str(model))))
    trainer = SimpleNamespace(loggers=[TensorBoardLogger(tmp_path)], datamodule=data, global_step=0, callbacks=[])
    judge = SimpleNamespace(decoder=None, export_files=lambda: lambda folder: None)
    SampleGenerations(["hello"]).sample(trainer, judge)
    with pytest.raises(AttributeError):
        SampleGenerations(["hello"]).sample(trainer, SimpleNamespace(decoder=None))
