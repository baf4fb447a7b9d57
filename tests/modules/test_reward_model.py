"""Reward models: the loss is TRL's, a step has one value however it is laid out, and a folder keeps the scores."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import toy_llama
from safetensors.torch import save_file
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader
from transformers import LlamaForSequenceClassification

from lnlit.callbacks.export import ExportModel
from lnlit.checkpoint.convert import export_model
from lnlit.data.chat import Document
from lnlit.data.preference import Group, PreferenceData, collate_groups
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import PreferenceBatch, RewardRequest
from lnlit.models.lora import LoRA
from lnlit.models.reward_head import FILE, RewardHead
from lnlit.models.weights import fill
from lnlit.modules.model_reward import ModelReward
from lnlit.modules.optim import AdamW
from lnlit.modules.reward_model import RewardModel
from lnlit.objectives.reward import bradley_terry, pair_accuracy, regression
from lnlit.registry import build
from lnlit.rewards.pool import RewardPool
from lnlit.testing.tiny import tiny_folder, tiny_spec

CONSTANT = partial(AdamW, schedule="constant", warmup_ratio=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """With a head that is not zero, so that a first step moves the whole model."""
    folder = tiny_folder(tmp_path_factory.mktemp("model") / "model")
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    save_file({"weight": weight}, folder / FILE)
    return folder


def groups(completions: int, count: int = 6, vocabulary: int = 256) -> list[Group]:
    """Prompts of different lengths, completions of different lengths and rewards; two of the rewards are equal."""
    random = torch.Generator().manual_seed(completions)

    def draw(length: int) -> list[int]:
        return torch.randint(1, vocabulary, (length,), generator=random).tolist()

    made = []
    for number in range(count):
        prompt = draw(2 + number)
        answers = [draw(1 + (3 * number + 5 * k) % 9) for k in range(completions)]
        documents = [Document(prompt + answer, [False] * len(prompt) + [True] * len(answer)) for answer in answers]
        rewards = torch.randn(completions, generator=random).tolist()
        if completions > 2:
            rewards[-1] = rewards[0]
        made.append(Group.of(documents, rewards))
    return made


def batch(rows: list[list[Group]], completions: int, length: int = 256) -> PreferenceBatch:
    return collate_groups(rows, completions, length, pad_id=0)


# the loss


def test_pairs_are_all_pairs_of_unequal_rewards():
    random = torch.Generator().manual_seed(0)
    scores, rewards = torch.randn(2, 7, 4, generator=random, dtype=torch.float64)
    rewards[1, 2], rewards[2] = rewards[1, 0], 1.0
    found = bradley_terry(scores, rewards, centre=0.1)
    for p in range(7):
        pairs = [(i, j) if rewards[p, i] > rewards[p, j] else (j, i) for i, j in combinations(range(4), 2)]
        pairs = [(i, j) for i, j in pairs if rewards[p, i] != rewards[p, j]]
        assert found.has_pairs_P[p] == bool(pairs)
        losses = [-logsigmoid(scores[p, i] - scores[p, j]) + 0.1 * (scores[p, i] + scores[p, j]) ** 2 for i, j in pairs]
        right = [scores[p, i] > scores[p, j] for i, j in pairs]
        assert found.loss_P[p].item() == pytest.approx(sum(losses) / len(pairs) if pairs else 0)
        assert found.accuracy_P[p].item() == pytest.approx(sum(right) / len(pairs) if pairs else 0)
        margins = [scores[p, i] - scores[p, j] for i, j in pairs]
        assert found.margin_P[p].item() == pytest.approx(sum(margins) / len(pairs) if pairs else 0)


def test_who_cannot_tell_two_apart_is_right_half_of_the_time():
    scores, rewards = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert bradley_terry(scores, rewards).accuracy_P.tolist() == pytest.approx([2.5 / 3, 0])
    accuracy, has_pairs = pair_accuracy(scores, rewards)
    assert accuracy.tolist() == pytest.approx([2.5 / 3, 0]) and has_pairs.tolist() == [True, False]


def test_regression_is_the_mean_squared_distance():
    scores, rewards = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 5.0]])
    assert regression(scores, rewards).tolist() == [2.5]


def trl_loss(theirs, made: list[Group], centre: float | None) -> torch.Tensor:
    """TRL's own loss, on padded rows, chosen ones first."""
    from trl import RewardTrainer

    ordered = [sorted(zip(group.rewards, group.completions(), strict=True), key=lambda p: -p[0]) for group in made]
    documents = [pair[side][1] for side in (0, 1) for pair in ordered]
    width = max(map(len, documents))
    ids = torch.tensor([[*document.tokens] + [0] * (width - len(document)) for document in documents])
    accelerator = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=theirs,
        args=SimpleNamespace(center_rewards_coefficient=centre),
        accelerator=accelerator,
        _metrics={"train": _Lists(), "eval": _Lists()},
        _total_train_tokens=0,
        _tp_size=1,
    )
    return RewardTrainer.compute_loss(trainer, theirs, {"input_ids": ids, "attention_mask": (ids != 0).long()})


class _Lists(dict):
    def __missing__(self, key):
        return self.setdefault(key, [])


@pytest.mark.parametrize("centre", [0.0, 0.3])
def test_loss_and_gradients_are_trls(centre):
    torch.manual_seed(0)
    theirs = toy_llama.theirs(LlamaForSequenceClassification, num_labels=1, pad_token_id=0)
    made = groups(2, vocabulary=97)
    expected = trl_loss(theirs, made, centre or None)
    expected.backward()
    ours = RewardModel("unused", AdamW(1e-3), center_rewards_coefficient=centre)
    ours.decoder, ours.head = toy_llama.ours(), RewardHead(32).double()
    given = dict(theirs.named_parameters())
    ours.head.weight.data.copy_(given.pop("score.weight"))
    fill(ours.decoder, ((name, value.detach()) for name, value in given.items()), "theirs")
    loss, count = ours.losses(batch([made[:1], made[1:4], made[4:]], 2), "train")
    (loss / count).backward()
    torch.testing.assert_close(loss / count, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(ours.head.weight.grad, theirs.score.weight.grad, atol=1e-10, rtol=0)
    for name, parameter in ours.decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, given[f"model.{name}"].grad, atol=1e-10, rtol=0, msg=name)


# a step


class Gradients(L.Callback):
    def on_gradient_norm(self, trainer, pl_module, norm) -> bool:
        parts = {"decoder": pl_module.decoder, "head": pl_module.head}
        named = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
        self.found = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
        self.norm, self.metrics = norm, dict(trainer.callback_metrics)
        return False


def step(model: Path, batches: list[PreferenceBatch], accumulate: int = 1, **settings):
    """(metrics, gradients) of one step."""
    module, seen = RewardModel(str(model), CONSTANT(1e-3), **settings), Gradients()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1e9,
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    total = torch.stack([gradient.norm() for gradient in seen.found.values()]).norm().item()
    assert seen.norm == pytest.approx(total, rel=1e-5)  # the head is clipped with the rest
    return seen.metrics, seen.found


@pytest.mark.parametrize("settings", [{}, {"center_rewards_coefficient": 0.1}, {"loss": "regression"}], ids=str)
@pytest.mark.parametrize("completions", [2, 4])
def test_a_step_is_the_same_however_prompts_are_laid_out(model, completions, settings):
    made = groups(completions)
    metrics, gradients = step(model, [batch([[group] for group in made], completions)], **settings)
    assert gradients.keys() >= {"head.weight", "decoder.embed_tokens.weight"}
    layouts = {
        "packed": [batch([made[:2], made[2:5], made[5:]], completions)],
        "accumulated": [batch([[group]], completions) for group in made],
        "unequal parts, padding": [batch([made[:1], []], completions, 384), batch([made[1:4], made[4:]], completions)],
        "another order": [batch([made[::-1][:3], made[::-1][3:]], completions)],
    }
    for name, batches in layouts.items():
        others, found = step(model, batches, accumulate=len(batches), **settings)
        for key in ("train/loss", "train/accuracy", "train/margin"):
            assert others[key].item() == pytest.approx(metrics[key].item(), rel=1e-6, abs=1e-6), name
        worst = max((found[key] - gradient).abs().max().item() for key, gradient in gradients.items())
        assert worst <= 1e-6 * max(gradient.abs().max().item() for gradient in gradients.values()), name


def test_prompts_of_equal_rewards_do_not_count(model):
    made = groups(2)
    equal = replace(made[0], rewards=[1.0, 1.0])
    alone, together = (step(model, [batch([row], 2)]) for row in (made[1:], [equal, *made[1:]]))
    assert together[0]["train/loss"].item() == pytest.approx(alone[0]["train/loss"].item(), abs=1e-6)
    torch.testing.assert_close(together[1], alone[1], atol=1e-6, rtol=1e-5)


def test_low_rank_adapters_and_the_head_are_all_that_trains(model):
    _, gradients = step(model, [batch([groups(2)], 2)], lora=LoRA(rank=2))
    assert all(name == "head.weight" or "lora_" in name for name in gradients) and len(gradients) > 1


def test_the_vocabularys_own_head_is_left_alone(tmp_path):
    untied = tiny_folder(tmp_path / "untied", tiny_spec().replace(tie_embeddings=False))
    module = RewardModel(str(untied), CONSTANT(1e-3))
    fit(module, [batch([groups(2)], 2)] * 2)
    assert module.decoder.lm_head is not None and not module.decoder.lm_head.weight.requires_grad


# training, writing and reading


def fit(module: RewardModel, train, val=None, **settings) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        **{"max_epochs": 1, "logger": False, "enable_checkpointing": False, **settings},
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if isinstance(train, L.LightningDataModule):
        trainer.fit(module, train)
    else:
        trainer.fit(module, DataLoader(train, batch_size=None), val and DataLoader(val, batch_size=None))
    return trainer


def preferences(count: int, first: int = 0) -> list[dict]:
    """The polite answer is the better one."""
    return [
        {"prompt": f"{n} {n * 7 % 13}?", "chosen": f"please {n * 3 % 11}", "rejected": f"go away {n * 5 % 17}"}
        for n in range(first, first + count)
    ]


def write(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, RewardModel, L.Trainer]:
    """(the written folder, the module that wrote it, its trainer)"""
    folder = tmp_path_factory.mktemp("trained")
    start = tiny_folder(folder / "start")
    train, val = (JsonlSource(write(folder / f"{n}.jsonl", preferences(40, n))) for n in (0, 100))
    module = RewardModel(str(start), CONSTANT(1e-3), center_rewards_coefficient=0.01)
    out = ExportModel(str(folder / "out"))
    data = PreferenceData(str(start), train, 64, 4, val=val)
    trainer = fit(module, data, max_epochs=3, callbacks=[out])
    return folder / "out", module, trainer


def test_it_learns_what_is_better_and_sees_it_in_new_prompts(trained):
    metrics = trained[2].callback_metrics
    assert metrics["val/accuracy"] == 1 and metrics["val/margin"] > 1
    assert metrics["val/loss"] < math.log(2) / 2


def requests(count: int = 20) -> list[RewardRequest]:
    return [
        RewardRequest([{"role": "user", "content": row["prompt"]}], row[side], False)
        for row in preferences(count, 300)
        for side in ("chosen", "rejected")
    ]


def by_hand(module: RewardModel, asked: list[RewardRequest]) -> list[float]:
    """Each completion alone, through the written-out chat template."""
    found = []
    for request in asked:
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in request.messages)
        text += f"<|im_start|>assistant\n{request.completion}<|im_end|>"
        ids = module.trainer.datamodule.encoder.tokenizer(text, add_special_tokens=False).input_ids
        hidden = []
        with torch.no_grad():
            module.decoder(torch.tensor([ids]), read_out=lambda h, _, to=hidden: to.append(h))
        found.append(hidden[0][0, -1].double().dot(module.head.weight[0].double()).item())
    return found


def test_a_written_folder_gives_the_same_scores(trained):
    folder, module, _ = trained
    reward = build("reward", "reward_model", str(folder), dtype="float32", batch_tokens=300)
    asked = requests()
    found = [result.value for result in reward.score_batch(asked)]
    assert found == pytest.approx(by_hand(module, asked), abs=1e-5)
    assert all(better > worse for better, worse in zip(found[::2], found[1::2], strict=True))
    assert [reward.score(request) for request in asked[:3]] == pytest.approx(found[:3], abs=1e-5)
    assert [result.value for result in reward.score_batch(asked[::-1])] == pytest.approx(found[::-1], abs=1e-5)
    reward.close()
    reward.close()
    assert reward.score(asked[0]) == pytest.approx(found[0], abs=1e-5)


def test_a_training_checkpoint_and_a_folder_export_with_the_head(trained, tmp_path):
    folder, module, trainer = trained
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    export_model(tmp_path / "last.ckpt", tmp_path / "from_training")
    export_model(folder, tmp_path / "from_folder")
    for exported in ("from_training", "from_folder"):
        reward = build("reward", "reward_model", str(tmp_path / exported), dtype="float32")
        asked = requests(2)
        assert [result.value for result in reward.score_batch(asked)] == pytest.approx(by_hand(module, asked), abs=1e-5)


def test_bf16_scores_are_close(trained):
    asked = requests()
    exact, rounded = (
        [result.value for result in ModelReward(str(trained[0]), dtype=dtype).score_batch(asked)]
        for dtype in ("float32", "bfloat16")
    )
    spread = max(exact) - min(exact)
    assert max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) < 0.1 * spread


def test_what_does_not_fit_has_no_reward_and_a_reason(trained):
    long = RewardRequest(requests(1)[0].messages, "x" * 400, True)
    pool = RewardPool({"rm": ModelReward(str(trained[0]))}, workers=1)
    found = [row["rm"] for row in pool.score([requests(1)[0], long])]
    assert found[0].value is not None and found[1].value is None
    assert "the reward model's context is 256" in str(found[1].error)
    pool.close()


def test_training_goes_on_with_a_folders_head(trained):
    folder, module, _ = trained
    again = RewardModel(str(folder), CONSTANT(1e-12))
    fit(again, [batch([groups(2)], 2)])
    torch.testing.assert_close(again.head.weight, module.head.weight)


def test_a_folder_without_a_head_is_no_reward_model(tmp_path, trained):
    plain = tiny_folder(tmp_path / "plain")
    with pytest.raises(UserError, match=r"no reward model, there is no reward_head.safetensors"):
        ModelReward(str(plain)).score_batch(requests(1))
    save_file({"weight": torch.zeros(1, 8)}, plain / FILE)
    with pytest.raises(UserError, match=r"a weight of shape \[1, 8\], the model in this folder needs \[1, 32\]"):
        ModelReward(str(plain)).score_batch(requests(1))
    (plain / FILE).write_bytes(b"not a tensor")
    with pytest.raises(UserError, match="cannot be read"):
        ModelReward(str(plain)).score_batch(requests(1))


def test_regression_learns_the_rewards_themselves(model):
    made = [replace(g, rewards=[5.0, 2.0, -3.0]) for g in groups(3, count=2)]
    module = RewardModel(str(model), CONSTANT(2e-3), loss="regression")
    asked = batch([made], 3)
    fit(module, [asked] * 150)
    with torch.no_grad():
        torch.testing.assert_close(module.scores(asked), asked.rewards_PK, atol=0.2, rtol=0)


def test_an_interrupted_run_goes_on_with_its_head(tmp_path, model):
    batches = [batch([groups(2)[n:]], 2) for n in range(4)]
    whole = RewardModel(str(model), CONSTANT(1e-3))
    fit(whole, batches)
    begun = RewardModel(str(model), CONSTANT(1e-3))
    fit(begun, batches[:2]).save_checkpoint(tmp_path / "half.ckpt")
    rest = RewardModel(str(model), CONSTANT(1e-3))
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False)
    trainer.fit(rest, DataLoader(batches[2:], batch_size=None), ckpt_path=str(tmp_path / "half.ckpt"))
    for name, value in whole.named_parameters():
        assert torch.equal(value, dict(rest.named_parameters())[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"center_rewards_coefficient": -1.0}, "a weight of 0 or more"),
        ({"center_rewards_coefficient": 0.1, "loss": "regression"}, "leave it 0"),
    ],
)
def test_refusals(model, settings, message):
    with pytest.raises(UserError, match=message):
        RewardModel(str(model), AdamW(1e-3), **settings)
