"""RPO trains with the paper's numbers, and finds its optimum."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lnlit.errors import UserError
from lnlit.interfaces import IGNORE, PreferenceBatch, TokenBatch
from lnlit.modules.optim import AdamW
from lnlit.modules.reference import StoredLogProbs
from lnlit.modules.rpo import RPO
from lnlit.objectives.policy import sums
from lnlit.testing.tiny import tiny_folder

PROMPT = [10, 20, 30]
ANSWERS = [[40, 41, 42, 43], [50, 51], [60, 61, 62]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("policy") / "model")


def batch(rewards: list[float]) -> PreferenceBatch:
    """One prompt's completions in one row."""
    samples = [PROMPT + answer for answer in ANSWERS[: len(rewards)]]
    labels = [[IGNORE] * (len(PROMPT) - 1) + answer + [IGNORE] for answer in ANSWERS[: len(rewards)]]
    positions = [list(range(len(sample))) for sample in samples]
    rows = [torch.tensor([[token for part in parts for token in part]]) for parts in (samples, labels, positions)]
    tokens = TokenBatch(rows[0], rows[1], rows[2], [len(sample) for sample in samples])
    owners = [index for index, answer in enumerate(ANSWERS[: len(rewards)]) for _ in answer]
    return PreferenceBatch(tokens, torch.tensor(owners), torch.tensor([rewards]))


def fit(model, steps: int, rewards: list[float], rate: float = 1e-3, **settings) -> tuple[RPO, list[float]]:
    module = RPO(str(model), AdamW(rate, schedule="constant", warmup_ratio=0.0), **settings)
    fit_with(module, rewards, steps)
    asked = batch(rewards)
    with torch.no_grad():
        log_probs = module.token_log_probs(asked.tokens).log_probs_N
    scores = log_probs - module.reference.log_probs(asked.tokens)
    return module, [scores[asked.sample_N == sample].sum().item() for sample in range(len(rewards))]


def fit_with(module: RPO, rewards: list[float], steps: int) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch(rewards)] * steps, batch_size=None))
    return trainer


@pytest.mark.parametrize("loss", ["backward", "forward", "squared", "dpo"])
def test_the_papers_numbers_train(model, loss):
    _, (better, worse) = fit(model, 20, [4.0, 1.0], beta=1e-5, eta=3.0, loss=loss)
    assert better > worse + 1


def test_equal_rewards_teach_nothing_at_the_reference(model):
    module, _ = fit(model, 1, [2.0, 2.0], rate=1e-12, beta=0.1)
    loss = module.losses(batch([2.0, 2.0]))
    assert abs(loss.total.item()) < 1e-6
    gradients = torch.autograd.grad(loss.total, list(module.decoder.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-4
    other = module.losses(batch([2.0, 1.0]))
    gradients = torch.autograd.grad(other.total, list(module.decoder.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) > 1e-2


@pytest.mark.parametrize("loss", ["backward", "squared"])
def test_it_ends_where_both_rewards_agree(model, loss):
    _, scores = fit(model, 400, [0.0, 0.5, 1.0], rate=2e-4, beta=0.5, eta=2.0, loss=loss)
    differences = [scores[1] - scores[0], scores[2] - scores[1]]
    assert differences == pytest.approx([2.0, 2.0], abs=0.25)  # eta / beta times the rewards' differences


def test_stored_log_probs_of_the_reference_serve_as_well(model):
    module, _ = fit(model, 3, [1.0, 0.0], beta=0.1)
    asked = batch([1.0, 0.0])
    by_copy = module.losses(asked)[0]
    reference_N = module.reference.log_probs(asked.tokens).double()
    asked.reference_PK = sums(reference_N, asked.sample_N, 2).view(1, 2)
    asked.reference_temperature_P = torch.ones(1)
    module.known = StoredLogProbs()
    torch.testing.assert_close(module.losses(asked)[0], by_copy, atol=0, rtol=0)


@pytest.mark.parametrize(("rewards", "accuracy"), [([1.0, 0.0], 0.5), ([1.0, 1.0], 0.0)])
def test_a_policy_that_is_its_reference_is_right_by_chance(model, rewards, accuracy):
    module = RPO(str(model), AdamW(1e-3, schedule="constant", warmup_ratio=0.0), beta=0.1)
    trainer = fit_with(module, rewards, 1)
    assert float(trainer.callback_metrics["train/rewards/accuracies"]) == accuracy


def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_no_weight(model):
    module = RPO(str(model), AdamW(1e-3, schedule="constant", warmup_ratio=0.0), beta=0.1)
    with pytest.raises(UserError, match=r"step 0: the gradient's norm is nan.*callback SkipBadSteps"):
        fit_with(module, [float("inf"), 0.0], 1)
    assert all(parameter.isfinite().all() for parameter in module.decoder.parameters())


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"beta": 0.1, "eta": -1.0}, {"beta": float("nan")}])
def test_scales_must_be_positive(model, settings):
    with pytest.raises(UserError, match=r"expected a (number above 0|finite number), got"):
        RPO(str(model), AdamW(1e-3), **settings)
