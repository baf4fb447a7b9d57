"""A bad gradient skips its step and nothing else; too many stop the run; moments can start afresh."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lnlit.callbacks import Checkpoint, SkipBadSteps, Throughput
from lnlit.callbacks.throughput import flops_per_token
from lnlit.data.chat import Document
from lnlit.data.packing import collate
from lnlit.errors import UserError
from lnlit.models.build import parameter_count
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.testing.tiny import tiny_decoder, tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model") / "model")


class Poison(L.Callback):
    """Multiplies the gradients of chosen steps, as an overflow or an outlier batch would."""

    def __init__(self, factors: dict[int, float]) -> None:
        self.factors = factors
        self.weights: list[torch.Tensor] = []

    def on_after_backward(self, trainer, pl_module) -> None:
        for parameter in pl_module.decoder.parameters():
            parameter.grad *= self.factors.get(trainer.global_step, 1.0)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.weights.append(pl_module.decoder.embed_tokens.weight.detach().clone())


def fit(model, root, poison: Poison, *callbacks: L.Callback, steps: int = 6, ckpt_path=None) -> L.Trainer:
    generator = torch.Generator().manual_seed(0)
    documents = [Document(torch.randint(0, 256, (16,), generator=generator).tolist(), [True] * 16) for _ in range(12)]
    batches = [collate([[document]], 16, pad_id=0) for document in documents]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[poison, *callbacks],
        default_root_dir=root,
        logger=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = SFT(str(model), AdamW(1e-3, schedule="constant", warmup_ratio=0.0))
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e6])
def test_a_bad_step_changes_no_weight_and_the_next_one_does(model, tmp_path, factor):
    poison, stability = Poison({3: factor}), SkipBadSteps(explosion_factor=50, window=3)
    fit(model, tmp_path, poison, stability)
    weights = poison.weights
    assert torch.equal(weights[2], weights[3]) and stability.skipped == 1
    assert not torch.equal(weights[3], weights[4]) and torch.isfinite(weights[-1]).all()


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_without_it_a_run_stops_before_the_weights_are_lost(model, tmp_path, factor):
    poison = Poison({3: factor})
    with pytest.raises(UserError, match=r"step 3: the gradient's norm is (nan|inf).*SkipBadSteps"):
        fit(model, tmp_path, poison)
    assert len(poison.weights) == 3 and torch.isfinite(poison.weights[-1]).all()


def test_steps_that_had_nothing_to_learn_do_not_make_the_next_one_an_explosion(model, tmp_path):
    stability = SkipBadSteps(explosion_factor=50, window=3)
    fit(model, tmp_path, Poison({1: 0.0, 2: 0.0, 3: 0.0}), stability)
    assert stability.skipped == 0


def test_too_many_bad_steps_stop_with_advice(model, tmp_path):
    poison = Poison({step: float("nan") for step in range(1, 9)})
    with pytest.raises(UserError, match=r"2 gradient norms in a row.*reset_optimizer: true"):
        fit(model, tmp_path, poison, SkipBadSteps(max_skips=2))


def test_a_resumed_run_can_start_with_fresh_moments(model, tmp_path):
    fit(model, tmp_path, Poison({}), Checkpoint(), steps=4)
    resumed = {}
    for reset in (False, True):
        trainer = fit(
            model, tmp_path / str(reset), Poison({}), SkipBadSteps(reset_optimizer=reset), steps=5,
            ckpt_path=tmp_path / "checkpoints/step-4.ckpt",
        )  # fmt: skip
        state = trainer.optimizers[0].state.values()
        resumed[reset] = {int(s["step"]) for s in state}
    assert resumed == {False: {5}, True: {1}}


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="explosion_factor > 1"):
        SkipBadSteps(explosion_factor=1.0)


def test_flops_follow_the_usual_count():
    decoder = tiny_decoder()
    matrices = parameter_count(decoder) - sum(p.numel() for p in decoder.parameters() if p.dim() == 1)
    one_long, two_short = flops_per_token(decoder, [100], 100), flops_per_token(decoder, [50, 50], 100)
    assert one_long - two_short == pytest.approx(12 * 2 * 4 * 8 * (101 / 2 - 51 / 2))
    assert one_long == pytest.approx(6 * matrices + 12 * 2 * 32 * 101 / 2)


def test_throughput_is_logged(model, tmp_path):
    trainer = fit(model, tmp_path, Poison({}), Throughput(), steps=2)
    assert trainer.callback_metrics["perf/tokens_per_s"] > 0
    assert trainer.callback_metrics["perf/loss_tokens_share"] == pytest.approx(15 / 16)
    assert trainer.callback_metrics["memory/peak_gib"] > 0
