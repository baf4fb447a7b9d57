"""Reward-aware preference optimisation (RPO; Llama-Nemotron section 6, arXiv 2502.00203)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lnlit.data.preference import PreferenceData
from lnlit.errors import UserError
from lnlit.interfaces import PreferenceBatch
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.means import Sums
from lnlit.modules.optim import AdamW
from lnlit.modules.sampled import SampledModel
from lnlit.objectives.advantage import centred
from lnlit.objectives.policy import sums
from lnlit.objectives.preference import LOSSES
from lnlit.objectives.reward import pair_accuracy
from lnlit.rl.batch import Packed
from lnlit.sampling.sample import Sample
from lnlit.specs import ModelSpec

#: References that are no paths: the policy that drew the samples, and what the rows say.
_ROLLOUT, _DATA = "rollout", "data"


class RPO(SampledModel):
    """Moves log(policy / reference) of several completions of a prompt towards their rewards' differences.

    The optimum is beta * log(policy / reference) = eta * reward, up to a constant of the prompt. The loss is divided by
    beta, so that the paper's tiny one trains; only the ratio eta / beta says how far. The completions
    are given (`PreferenceData`) or the policy's own (`Experience`).

    Args:
        model: folder, .gguf file or `pypi:<distribution>` to start from.
        optimizer: AdamW and its schedule.
        beta: weight of the divergence from the reference, the paper's KL penalty.
        eta: scale of the given rewards.
        loss: "backward" KL(rewards || policy), "forward" KL(policy || rewards), "squared" difference, or "dpo", which
            looks at the best completion only.
        reference: the model to compare with; null is the one to start from. "rollout" is the policy as it was when it
            drew the samples, so that each rollout of `Experience` is an iteration of the paper. "data" takes log-probs
            that `lnlit rollout reference` has written into the rows, so that no second model is in memory.
        temperature: at which samples are drawn, and all probabilities computed.
        runtime: kernels, compilation, memory.
        lora: train low-rank adapters only; None trains every weight.
    """

    compares_samples = True

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        beta: float,
        eta: float = 1.0,
        loss: Literal["backward", "forward", "squared", "dpo"] = "backward",
        reference: str | None = None,
        temperature: float = 1.0,
        runtime: Runtime = Runtime(),
        lora: LoRA | None = None,
    ) -> None:
        self.by_rollout, self.by_data = reference == _ROLLOUT, reference == _DATA
        frozen = not (self.by_rollout or self.by_data)
        super().__init__(model, optimizer, frozen, reference, temperature, runtime, lora)
        for name, value in {"beta": beta, "eta": eta}.items():
            if not 0 < value < float("inf"):
                raise UserError(f"{name}: expected a number above 0, got {value}")
        self.beta, self.eta, self.loss = beta, eta, loss
        #: Of prompts whose completions are not all equally good.
        self._pair_sums = {"train": Sums(), "val": Sums()}

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        if self.by_rollout and self._is_offline:
            raise UserError(f"model.reference: {_ROLLOUT!r} needs samples of the policy's own, so data of `Experience`")
        if self.by_data and not self._is_offline:
            raise UserError(f"model.reference: {_DATA!r} needs given completions, so data of `PreferenceData`")

    # samples

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """What the gradient begins with, up to a factor: at the reference all completions are equally likely."""
        return centred(rewards_PG)

    def wants_own_log_probs(self, update: int) -> bool:
        return self.by_rollout

    def sample_settings(self) -> dict[str, Any]:
        """Whose log-probs the samples bring."""
        found = super().sample_settings()
        return {**found, "reference": _ROLLOUT} if self.by_rollout else found

    def make_batch(
        self, packed: Packed, samples: Sequence[Sample], samples_per_prompt: int, max_new_tokens: int
    ) -> PreferenceBatch:
        reference_S = [sample.old_log_probs if self.by_rollout else sample.reference_log_probs for sample in samples]
        # Half a comparison is none: a completion without tokens to learn from leaves its prompt out, like one unjudged.
        rewards = [sample.reward if sample.learned else float("nan") for sample in samples]
        rewards_PK = torch.tensor(rewards, dtype=torch.float64, device=packed.sample_N.device).view(
            -1, samples_per_prompt
        )
        reference_PK = torch.stack([log_probs.double().sum() for log_probs in reference_S]).view_as(rewards_PK)  # type: ignore[union-attr]
        return PreferenceBatch(packed.tokens, packed.sample_N, rewards_PK, reference_PK=reference_PK.to(rewards_PK))

    # the step

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        self._log_rollout("train", batch.metrics)
        loss, count, parts = self.losses(batch)
        return self.step_loss(loss, count, **parts)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not isinstance(batch, PreferenceBatch):
            return super().validation_step(batch, batch_idx)
        loss, count, parts = self.losses(batch)
        self.val_loss(loss, count, **parts)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.log_means("train", self._pair_sums["train"])

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log_means("val", self._pair_sums["val"])

    def losses(self, batch: PreferenceBatch) -> tuple[Tensor, int, dict[str, Tensor]]:
        """(loss, prompts, what shows whether it works), sums over the prompts whose completions all have a reward."""
        log_probs_N = self.token_log_probs(batch.tokens).log_probs_N
        ratios_PK = self._ratios(log_probs_N, batch)
        known_P = ~(batch.rewards_PK + ratios_PK.detach()).isnan().any(1)
        scores_PK, rewards_PK = ratios_PK[known_P], batch.rewards_PK[known_P]
        loss_P = LOSSES[self.loss](scores_PK, rewards_PK, self.beta, self.eta)
        spread_P = scores_PK.amax(1) - scores_PK.amin(1)
        accuracy_P, has_pairs_P = pair_accuracy(scores_PK, rewards_PK)
        stage = "train" if self.training else "val"
        self._pair_sums[stage].add(has_pairs_P.sum(), **{"rewards/accuracies": accuracy_P.sum()})
        parts = {
            "rewards/margins": self.beta * spread_P.sum(),
            "log_ratio": scores_PK.mean(1).sum(),
        }
        return loss_P.sum(), len(loss_P), parts

    def _ratios(self, log_probs_N: Tensor, batch: PreferenceBatch) -> Tensor:
        """log(policy / reference) of whole completions, [P, K]; NaN where what the reference says is unknown."""
        shape = batch.rewards_PK.shape
        reference_PK = batch.reference_PK
        if self.reference is not None and (reference_PK is None or self._is_offline):
            reference_N = self.reference.log_probs(batch.tokens, self.temperature)
            reference_PK = sums(reference_N.double(), batch.sample_N, shape.numel()).view(shape)
        if self.by_data:
            self._check_temperature(batch.reference_temperature_P)
        assert reference_PK is not None, "Experience asks whoever the reference is"
        ratios_S = sums(log_probs_N.double(), batch.sample_N, shape.numel())
        return (ratios_S.view(shape) - reference_PK).to(log_probs_N.dtype)

    def _check_temperature(self, temperature_P: Tensor | None) -> None:
        others = set() if temperature_P is None else set(temperature_P.tolist()) - {self.temperature}
        if temperature_P is None or any(math.isnan(other) for other in others):
            raise UserError(
                f"model.reference: {_DATA!r}, but there are rows without log-probs of a reference. `lnlit rollout "
                "reference` writes them."
            )
        if others:
            raise UserError(
                f"model.temperature: {self.temperature}, but the rows bring log-probs at {min(others)}. Use that, or "
                "write them anew with `lnlit rollout reference`."
            )

    @property
    def _is_offline(self) -> bool:
        """Whether completions are given. What their rows say of a reference need not be about this one."""
        return isinstance(getattr(self._trainer, "datamodule", None), PreferenceData)
