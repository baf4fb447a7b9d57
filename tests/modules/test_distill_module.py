"""`Distill` under a real Trainer: what it learns, logs, saves, resumes and refuses."""

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from lnlit.callbacks import Checkpoint, RandomState
from lnlit.callbacks.checkpoints import checkpoint_folder, list_checkpoints
from lnlit.data.sources import JsonlSource, TextFileSource
from lnlit.data.text_data import TextData
from lnlit.errors import UserError
from lnlit.interfaces import IGNORE
from lnlit.modules.distill import Distill
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.specs import NOOP
from lnlit.testing.tiny import swiglu, tiny_decoder, tiny_folder, tiny_spec

CPT = {"teacher": None, "kl_weight": 0.0, "cosine_weight": 0.0, "lm_weight": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A parent, children of it (one attention gone and one FFN narrowed; deeper; wider), and text."""
    folder = tmp_path_factory.mktemp("distill")
    parent = tiny_spec()
    first, second = parent.layers
    tiny_folder(folder / "parent", parent)
    tiny_folder(
        folder / "child", parent.replace(layers=(first.replace(ffn=swiglu(24)), second.replace(attention=NOOP)))
    )
    tiny_folder(folder / "deep", parent.replace(layers=(first,) * 3))
    tiny_folder(folder / "wide", parent.replace(hidden_size=40))
    text = [f"{i} and {i * i} make {i + i * i}. " * (1 + i % 5) for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in text))
    (folder / "val.txt").write_text("".join(text[::7]))
    return folder


def data(folder: Path, **settings) -> TextData:
    train, val = JsonlSource(str(folder / "rows.jsonl")), TextFileSource(str(folder / "val.txt"))
    return TextData(
        str(folder / "child"), train, **{"sequence_length": 64, "micro_batch_size": 2, "val": val, **settings}
    )


def module(folder: Path, model: str = "child", rate: float = 3e-3, **settings) -> Distill:
    settings = {"teacher": str(folder / "parent"), **settings}
    return Distill(str(folder / model), optimizer=AdamW(rate, schedule="constant", warmup_ratio=0.0), **settings)


class Log(L.Callback):
    """What was logged at each step, and the last gradients."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_gradient_norm(self, trainer, pl_module, norm: float) -> bool:
        self.gradients = {n: p.grad.clone() for n, p in pl_module.decoder.named_parameters() if p.grad is not None}
        return False

    def on_train_batch_end(self, trainer, *args) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(method: L.LightningModule, texts: TextData, root: Path, steps: int, *callbacks: L.Callback, **settings):
    log = Log()
    settings = {"enable_checkpointing": bool(callbacks), "limit_val_batches": 0, **settings}
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=root,
        callbacks=[log, *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(method, texts, ckpt_path=ckpt_path)
    return log, trainer


def test_a_copy_of_the_teacher_has_nothing_to_learn(folder, tmp_path):
    log, _ = fit(module(folder, "parent", kl_weight=1.0, cosine_weight=1.0), data(folder), tmp_path, 1)
    assert abs(log.steps[0]["train/kl"]) < 1e-6 and abs(log.steps[0]["train/cosine"]) < 1e-6
    assert all(gradient.abs().max() < 1e-6 for gradient in log.gradients.values())


def test_divergence_and_distance_fall_and_validation_agrees(folder, tmp_path):
    log, trainer = fit(module(folder), data(folder), tmp_path, 40, limit_val_batches=1.0, val_check_interval=10)
    for name in ("train/kl", "train/cosine", "val/kl", "val/cosine"):
        seen = [step[name] for step in log.steps if name in step]
        assert seen[-1] < 0.6 * seen[0], (name, seen[0], seen[-1])
    last = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert last["val/perplexity"] == pytest.approx(math.exp(last["val/lm_loss"]), rel=1e-5)
    assert last["val/loss"] == pytest.approx(last["val/kl"] + last["val/cosine"], rel=1e-5)


def test_with_cross_entropy_alone_the_teacher_only_measures_in_validation(folder, tmp_path):
    method = module(folder, kl_weight=0.0, cosine_weight=0.0, lm_weight=1.0, rate=1e-2)
    log, _ = fit(method, data(folder), tmp_path, 20, limit_val_batches=1.0, val_check_interval=10)
    assert "train/kl" not in log.steps[-1] and log.steps[-1]["train/lm"] < log.steps[0]["train/lm"]
    assert log.steps[-1]["val/kl"] > 0.0


def test_continued_pretraining_is_supervised_training_on_every_token(folder, tmp_path):
    sft = SFT(str(folder / "child"), AdamW(3e-3, schedule="constant", warmup_ratio=0.0))
    expected, _ = fit(sft, data(folder), tmp_path, 3)
    cpt, _ = fit(module(folder, **CPT), data(folder), tmp_path, 3)
    assert [s["train/loss"] for s in cpt.steps] == [s["train/loss"] for s in expected.steps]
    assert all(torch.equal(gradient, cpt.gradients[name]) for name, gradient in expected.gradients.items())


def test_continued_pretraining_scores_like_each_document_piece_alone(folder):
    """No attention crosses a border: the loss of packed rows is that of their pieces, one by one."""
    texts = data(folder, sequence_length=192)
    batch = next(iter(texts.train_dataloader()))
    method = module(folder, **CPT)
    method.decoder = tiny_decoder()
    total, count, _ = method.losses(batch, None)
    expected, tokens, labels = 0.0, batch.tokens.flatten(), batch.labels.flatten()
    start = 0
    for length in batch.lengths:
        span = slice(start, start + length)
        logits = method.decoder(tokens[span][None])[0]
        expected += F.cross_entropy(logits, labels[span], reduction="sum", ignore_index=IGNORE).item()
        start += length
    assert len(batch.lengths) > 2 and count == int((labels != IGNORE).sum())
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_a_resumed_run_ends_in_the_same_weights_bitwise_and_no_checkpoint_holds_the_teacher(folder, tmp_path):
    def run(name: str, steps: int, ckpt_path=None) -> Distill:
        method = module(folder)
        callbacks = Checkpoint(every_n_steps=0), RandomState()
        settings = {"accumulate_grad_batches": 2, "ckpt_path": ckpt_path}
        fit(method, data(folder, cache=str(tmp_path / "tokens")), tmp_path / name, steps, *callbacks, **settings)
        return method

    whole = run("whole", 9)
    run("parts", 4)
    (stopped,) = list_checkpoints(checkpoint_folder(tmp_path / "parts"))
    saved = torch.load(stopped, weights_only=True)
    assert saved["state_dict"].keys() == {f"decoder.{name}" for name, _ in whole.decoder.named_parameters()}
    moments = saved["optimizer_states"][0]["state"]
    assert len(moments) == len(list(whole.decoder.parameters()))
    resumed = run("rest", 9, ckpt_path=stopped)
    for (name, weight), other in zip(whole.decoder.named_parameters(), resumed.decoder.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_the_teacher_stays_as_it_was(folder, tmp_path):
    method = module(folder, "child")
    fit(method, data(folder), tmp_path, 2)
    teacher = method._teacher
    assert teacher is not None and not teacher.decoder.training
    untouched = tiny_decoder(tiny_spec())
    for (name, weight), other in zip(teacher.decoder.named_parameters(), untouched.parameters(), strict=True):
        assert not weight.requires_grad and torch.equal(weight, other), name


def test_bf16_runs_keep_a_half_size_teacher(folder, tmp_path):
    method = module(folder)
    log, _ = fit(method, data(folder), tmp_path, 2, precision="bf16-mixed")
    assert method._teacher is not None
    assert {p.dtype for p in method._teacher.decoder.parameters()} == {torch.bfloat16}
    exact, _ = fit(module(folder), data(folder), tmp_path, 2)
    assert log.steps[0]["train/kl"] == pytest.approx(exact.steps[0]["train/kl"], rel=0.1)


def test_layers_of_unequal_depths_are_paired_by_hand(folder, tmp_path):
    pairs = {"teacher": str(folder / "deep"), "hidden_layers": [(0, 0), (1, 2)]}
    log, _ = fit(module(folder, **pairs), data(folder), tmp_path, 1)
    one, _ = fit(module(folder, **{**pairs, "hidden_layers": [(1, 2)]}), data(folder), tmp_path, 1)
    assert log.steps[0]["train/cosine"] > one.steps[0]["train/cosine"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"teacher": None},
            "teacher: null leaves nothing to compare with.*kl_weight: 0, cosine_weight: 0 and lm_weight: 1",
        ),
        ({"kl_weight": 0.0, "cosine_weight": 0.0}, "nothing to learn"),
        ({"kl_weight": -1.0}, "kl_weight: expected a weight of 0 or more, got -1"),
        ({"temperature": 0.0}, "temperature: expected a number above 0"),
        ({"teacher": "deep"}, "the model has 2 layers and the teacher 3.*hidden_layers"),
        ({"teacher": "wide"}, "hidden size is 32, the teacher's 40.*Set cosine_weight: 0"),
        ({"teacher": "deep", "hidden_layers": [(0, 3)]}, "no layer 3; the teacher has layers 0 to 2"),
        ({"teacher": "deep", "hidden_layers": [(0, 1), (0, 2)]}, "a layer of the model comes twice"),
        ({"hidden_layers": []}, "the list is empty"),
        ({"teacher": "nowhere"}, "no such file or folder"),
    ],
)
def test_what_cannot_work_ends_in_one_line(folder, tmp_path, settings, message):
    if settings.get("teacher"):
        settings = {**settings, "teacher": str(folder / settings["teacher"])}
    with pytest.raises(UserError, match=message) as caught:
        fit(module(folder, **settings), data(folder), tmp_path, 1)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_another_vocabulary_is_refused(folder, tmp_path):
    tiny_folder(tmp_path / "big", tiny_spec().replace(vocab_size=300))
    with pytest.raises(UserError, match="vocabulary of 300 tokens, the model 258"):
        fit(module(folder, teacher=str(tmp_path / "big")), data(folder), tmp_path, 1)
    tiny_folder(tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"another tokenizer: 2 tokens differ, e\.g\. '[ab]' is"):
        fit(module(folder, teacher=str(tmp_path / "other")), data(folder), tmp_path, 1)
