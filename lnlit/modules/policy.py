"""What GRPO and RLOO share: a policy that learns from its own samples. Where these come from it does not know.

Shape suffixes: N tokens of completions, P prompts, G samples of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import PolicyBatch, TokenBatch
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import LitModel, Runtime
from lnlit.modules.means import Sums
from lnlit.modules.optim import AdamW
from lnlit.modules.reference import Reference, token_log_probs
from lnlit.objectives import policy
from lnlit.objectives.kl import KL, k3
from lnlit.objectives.log_probs import TokenLogProbs
from lnlit.objectives.policy import Clip, Correction, RatioOf, clipped_loss, log_ratios
from lnlit.specs import ModelSpec

ReductionName = Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"]


class PolicyModel(LitModel, ABC):
    """A method says what an advantage is; the loss is `reduction(correction * clipped(ratio, advantage) + kl)`."""

    def __init__(
        self,
        model: str,
        optimizer: AdamW,
        ratio: RatioOf,
        reduction: ReductionName,
        clip: Clip,
        kl: KL,
        reference: str | None,
        correction: Correction | None,
        temperature: float,
        runtime: Runtime,
        lora: LoRA | None,
    ) -> None:
        super().__init__(model, optimizer, runtime, lora)
        if correction is not None and ratio != "token":
            raise UserError(
                f"correction weighs tokens, but ratio: {ratio} is one number for a whole sample. Use ratio: token, or "
                "correction: null."
            )
        if not 0 < temperature < float("inf"):
            raise UserError(f"temperature: expected a number above 0, got {temperature}")
        self.ratio: RatioOf = ratio
        self.reduction: ReductionName = reduction
        self.clip, self.kl = clip, kl
        self.correction, self.temperature = correction, temperature
        self.reference = Reference(reference, self) if kl.weight else None
        self._token_sums = Sums()

    @abstractmethod
    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """How much better each sample is than its siblings, [P, G]. A reward of NaN could not be given."""

    # building

    def _check(self, spec: ModelSpec) -> None:
        super()._check(spec)
        if self.reference is not None:
            self.reference.check(spec)

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is not None:
            self.reference.load()

    # log-probs

    def token_log_probs(self, batch: TokenBatch) -> TokenLogProbs:
        """The policy's, at each position with a label, row by row."""
        return token_log_probs(self.decoder, batch, self.temperature)

    @torch.no_grad()
    def current_log_probs(self, batch: TokenBatch) -> Tensor:
        """The same outside a training step, [N]: in its precision, without gradient and without dropout."""
        was_training = self.decoder.training
        self.decoder.eval()
        try:
            with self.trainer.precision_plugin.forward_context():
                return self.token_log_probs(batch).log_probs_N
        finally:
            self.decoder.train(was_training)

    def reference_log_probs(self, batch: TokenBatch) -> Tensor | None:
        """The reference's likewise; None where nothing is compared with it."""
        return None if self.reference is None else self.reference.log_probs(batch, self.temperature)

    # the step

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        self.log_dict({f"train/{name}": value for name, value in batch.metrics.items()})
        log_probs_N, entropy_N = self.token_log_probs(batch.tokens)
        loss, count = self.loss(log_probs_N, batch)
        self._token_sums.add(len(log_probs_N), entropy=entropy_N.sum(), **self._observed(log_probs_N.detach(), batch))
        return self.step_loss(loss, count)

    def loss(self, log_probs_N: Tensor, batch: PolicyBatch) -> tuple[Tensor, int]:
        """(sum, count): the loss of a step is the sum of its micro-batches' sums over the sum of their counts."""
        old_N = log_probs_N.detach() if batch.old_N is None else batch.old_N
        ratio_N = log_ratios(log_probs_N, old_N, batch.sample_N, batch.samples, self.ratio)
        loss_N = clipped_loss(ratio_N, batch.advantages_N, self.clip).loss_N
        if self.correction is not None and batch.engine_N is not None:
            loss_N = loss_N * self.correction.weights(old_N, batch.engine_N)
        if self.kl.in_loss:
            assert batch.reference_N is not None, "a KL in the loss needs the reference's log-probs"
            loss_N = loss_N + self.kl.penalty(log_probs_N, batch.reference_N, old_N)
        weight_N, count = self._reduce_to(batch)
        return (weight_N * loss_N).sum(), count

    def _reduce_to(self, batch: PolicyBatch) -> policy.Reduction:
        match self.reduction:
            case "token_mean":
                return policy.token_mean(batch.sample_N, batch.samples)
            case "sequence_mean":
                return policy.sequence_mean(batch.sample_N, batch.samples)
            case "sequence_sum":
                return policy.sequence_sum(batch.sample_N, batch.samples)
            case "constant_length":
                return policy.constant_length(batch.sample_N, batch.samples, batch.max_new_tokens)

    def _observed(self, log_probs_N: Tensor, batch: PolicyBatch) -> dict[str, Tensor]:
        """Sums over tokens, of what says whether a run is healthy."""
        old_N = log_probs_N if batch.old_N is None else batch.old_N
        ratio_N = log_ratios(log_probs_N, old_N, batch.sample_N, batch.samples, self.ratio)
        clipped = clipped_loss(ratio_N, batch.advantages_N, self.clip)
        seen = {
            "clip_ratio/low_mean": clipped.clipped_low_N,
            "clip_ratio/high_mean": clipped.clipped_high_N,
            "clip_ratio/region_mean": clipped.clipped_low_N | clipped.clipped_high_N,
        }
        if batch.reference_N is not None:
            seen["kl"] = k3(log_probs_N - batch.reference_N)
        if batch.engine_N is not None:
            seen["sampling/logp_difference"] = (old_N - batch.engine_N).abs()
            seen["sampling/importance_ratio"] = (old_N - batch.engine_N).exp()
        return {name: values_N.double().sum() for name, values_N in seen.items()}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.log_means("train", self._token_sums)
