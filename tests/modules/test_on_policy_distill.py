"""A teacher, or several, correct a model on its own samples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from lnlit.callbacks.checkpoints import Checkpoint, list_checkpoints
from lnlit.checkpoint.load import frozen_decoder
from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import PolicyBatch, TokenBatch
from lnlit.models.weights import canonical_weights
from lnlit.modules.on_policy_distill import OnPolicyDistill
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy
from lnlit.modules.prompt_data import PromptData, RolloutConfig
from lnlit.objectives.kl import KL
from lnlit.rl.on_policy_distill import OnPolicyDistill as Sampled
from lnlit.rollout.native import NativeEngine
from lnlit.specs import BlockSpec
from lnlit.testing.tiny import attention, swiglu, tiny_folder, tiny_spec


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    """Of other widths and depths than the model."""
    folder = tmp_path_factory.mktemp("teachers")
    wide = tiny_spec().replace(layers=(BlockSpec(attention(4), swiglu(64)),))
    deep = tiny_spec().replace(layers=(BlockSpec(attention(1), swiglu(16)),) * 3)
    made = {"wide": tiny_folder(folder / "wide", wide, seed=5), "deep": tiny_folder(folder / "deep", deep, seed=6)}
    return {name: str(path) for name, path in made.items()}


@pytest.fixture(scope="module")
def asking(tmp_path_factory) -> str:
    """Prompts of which every second names each teacher."""
    file = tmp_path_factory.mktemp("asking") / "prompts.jsonl"
    write(file, ["wide", "deep"])
    return str(file)


def write(file: Path, names: list[str | None]) -> None:
    rows = [{"prompt": f"say {n}" + "!" * (n % 3), "teacher": names[n % len(names)]} for n in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def data(model, prompts, updates=1, samples=1) -> PromptData:
    sizes = RolloutConfig(4, samples, 8, updates_per_rollout=updates, reward_workers=1)
    return PromptData(str(model), JsonlSource(prompts), [], NativeEngine(8, "float32", "cpu"), sizes)


def fit(
    module: L.LightningModule, experience: PromptData, root: Path, steps: int, path=None, callbacks=()
) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, default_root_dir=root, callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks), **quiet,
    )  # fmt: skip
    trainer.fit(module, experience, ckpt_path=path)
    return trainer


def optimizer(rate=1e-3) -> AdamW:
    return AdamW(rate, schedule="constant", warmup_ratio=0.0)


def documents(batch: TokenBatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(tokens, which of them predict a label) of each document, as if none shared a prefix."""
    order = torch.arange(sum(batch.lengths)) if batch.gather_index is None else batch.gather_index
    found = []
    for part in order.split(batch.lengths):
        found.append((batch.tokens[0, part], batch.labels[0, part] >= 0))
    return [(tokens, is_answer) for tokens, is_answer in found if is_answer.any()]


def divergence(student, teacher, tokens, is_answer, beta, temperature) -> torch.Tensor:
    """The textbook form, of one document on its own."""
    q, p = (torch.log_softmax(m(tokens[None])[0][is_answer] / temperature, -1) for m in (student, teacher))
    if beta == 1:
        return F.kl_div(p, q, reduction="sum", log_target=True)
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    ends = [F.kl_div(m, x, reduction="sum", log_target=True) for x in (p, q)]
    return beta * ends[0] + (1 - beta) * ends[1]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("beta", "temperature"), [(1.0, 1.0), (0.4, 0.8)])
def test_the_loss_is_the_divergence_of_each_sample_from_its_teacher(
    model, asking, teachers, tmp_path, several, beta, temperature
):
    compared = []
    loaded = {name: frozen_decoder(path, torch.device("cpu"), None) for name, path in teachers.items()}

    class Compared(OnPolicyDistill):
        def training_step(self, batch: PolicyBatch, batch_idx: int):
            loss = super().training_step(batch, batch_idx)
            expected = torch.zeros(())
            for (tokens, is_answer), name in zip(documents(batch.tokens), batch.teacher_S, strict=True):
                other = loaded[name if several else "wide"]
                expected = expected + divergence(self.decoder, other, tokens, is_answer, beta, temperature)
            expected = expected * temperature**2
            ours = torch.autograd.grad(loss, [*self.decoder.parameters()], retain_graph=True)
            theirs = torch.autograd.grad(expected, [*self.decoder.parameters()])
            compared.append((loss.item(), expected.item(), {*batch.teacher_S}))
            for mine, plain in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, plain, atol=2e-4, rtol=2e-4)
            return loss

    teacher = teachers if several else teachers["wide"]
    module = Compared(str(model), teacher, optimizer(), beta=beta, temperature=temperature)
    fit(module, data(model, asking, samples=2), tmp_path, 2)
    assert len(compared) == 2 and all(names == {"wide", "deep"} for *_, names in compared)
    assert all(ours == pytest.approx(plain, rel=1e-5) for ours, plain, _ in compared)


def test_without_rewards_it_comes_nearer_to_its_teacher(model, asking, teachers, tmp_path):
    seen = []

    class Seen(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    module = OnPolicyDistill(str(model), teachers["wide"], optimizer(3e-3))
    fit(module, data(model, asking), tmp_path, 12, callbacks=[Seen()])
    divergence = [each["train/divergence"] for each in seen]
    assert sum(divergence[-3:]) < 0.7 * sum(divergence[:3])
    assert seen[0]["train/divergence"] == pytest.approx(seen[0]["train/loss"])
    assert not [name for name in seen[0] if "reward" in name and name != "train/time/reward"]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_resumes_between_updates_ends_in_the_same_weights(model, asking, teachers, tmp_path, stop):
    def run(root, steps, path=None):
        module = OnPolicyDistill(str(model), teachers, optimizer())
        fit(module, data(model, asking, updates=2), tmp_path / root, steps, path, [Checkpoint(every_n_steps=1, keep=9)])
        return {name: value.clone() for name, value in canonical_weights(module.decoder)}

    whole = run("whole", 4)
    path = next(path for path in list_checkpoints(tmp_path / "whole" / "checkpoints") if f"step-{stop}." in path.name)
    again = run("again", 4, str(path))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize("name", ["tall", None, ["wide"], {}])
def test_a_row_that_names_no_teacher_is_told_before_anything_is_sampled(model, teachers, tmp_path, name):
    write(tmp_path / "prompts.jsonl", ["wide", name])
    module = OnPolicyDistill(str(model), teachers, optimizer())
    with pytest.raises(
        UserError, match=rf"prompts.jsonl:2: the row's teacher is {re.escape(repr(name))}; expected one of .*wide, deep"
    ):
        fit(module, data(model, str(tmp_path / "prompts.jsonl")), tmp_path, 1)


def test_what_makes_no_sense_is_refused(model, teachers):
    with pytest.raises(UserError, match=r"beta: expected a number from 0 to 1, got 1\.5"):
        OnPolicyDistill(str(model), teachers["wide"], optimizer(), beta=1.5)
    with pytest.raises(UserError, match="teacher: expected a model to learn from"):
        OnPolicyDistill(str(model), {}, optimizer())
    with pytest.raises(UserError, match="kl: nothing else is learned from"):
        Sampled(kl=KL(0.0))


def test_teachers_are_no_part_of_the_module(model, teachers):
    module = OnPolicyDistill(str(model), teachers, optimizer())
    assert module.beside == {"teacher wide": teachers["wide"], "teacher deep": teachers["deep"]}


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_sampled_tokens_have_the_divergences_gradient_on_average(estimator):
    """The mean over the vocabulary, weighted by the policy's probabilities, of the gradient that each token gives."""
    torch.manual_seed(0)
    logits_V, teacher_V = torch.randn(11, dtype=torch.float64, requires_grad=True), torch.randn(11, dtype=torch.float64)
    log_q_V, log_p_V = torch.log_softmax(logits_V, -1), torch.log_softmax(teacher_V, -1)
    (expected,) = torch.autograd.grad(F.kl_div(log_p_V, log_q_V, reduction="sum", log_target=True), logits_V)
    mean_V = torch.zeros_like(logits_V)
    for token in range(11):
        log_probs_N = torch.log_softmax(logits_V, -1)[token : token + 1]
        row = torch.zeros(1, 1, dtype=torch.long)
        zero_N = torch.zeros(1, dtype=torch.long)
        batch = PolicyBatch(
            TokenBatch(row, row, row, [1]), zero_N, 1, torch.zeros(1), reference_N=log_p_V[token : token + 1]
        )
        loss = Sampled(kl=KL(1.0, estimator)).loss(log_probs_N, batch).total
        mean_V += log_q_V[token].exp().detach() * torch.autograd.grad(loss, logits_V)[0]
    torch.testing.assert_close(mean_V, expected)


def test_sampled_tokens_teach_too(model, asking, teachers, tmp_path):
    """By the method that takes any algorithm, whose reference is the teacher."""
    module = Policy(str(model), optimizer(3e-3), Sampled(), reference=teachers["wide"])
    before = {
        name: value.clone() for name, value in canonical_weights(frozen_decoder(str(model), torch.device("cpu"), None))
    }
    fit(module, data(model, asking), tmp_path, 2)
    assert all(not torch.equal(value, before[name]) for name, value in canonical_weights(module.decoder))
