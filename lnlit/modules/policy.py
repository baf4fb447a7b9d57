"""What GRPO and RLOO share: how samples with advantages become a loss.

Shape suffixes: N tokens of completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import PolicyBatch
from lnlit.models.lora import LoRA
from lnlit.modules.lit_model import Runtime
from lnlit.modules.means import Sums
from lnlit.modules.optim import AdamW
from lnlit.modules.sampled import SampledModel
from lnlit.objectives import policy
from lnlit.objectives.kl import KL, k3
from lnlit.objectives.policy import Clip, Correction, RatioOf, clipped_loss, log_ratios
from lnlit.rl.batch import Packed
from lnlit.sampling.sample import Sample

ReductionName = Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"]


class PolicyModel(SampledModel):
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
        super().__init__(model, optimizer, bool(kl.weight), reference, temperature, runtime, lora)
        if correction is not None and ratio != "token":
            raise UserError(
                f"correction weighs tokens, but ratio: {ratio} is one number for a whole sample. Use ratio: token, or "
                "correction: null."
            )
        if lora is not None and lora.dropout:
            raise UserError(
                "lora.dropout: samples are drawn without it, so every ratio of the policy to itself would be noise; "
                "set it to 0"
            )
        self.ratio: RatioOf = ratio
        self.reduction: ReductionName = reduction
        self.clip, self.kl, self.correction = clip, kl, correction
        self._token_sums = Sums()

    # samples

    def wants_own_log_probs(self, update: int) -> bool:
        """The first update is on policy: its own log-probs are those that it computes anyway."""
        return update > 0 or self.kl.in_reward

    def penalty(self, sample: Sample) -> float:
        """The divergence from the reference, where it is part of the reward."""
        if not self.kl.in_reward:
            return 0.0
        assert sample.old_log_probs is not None and sample.reference_log_probs is not None
        return self.kl.weight * (sample.old_log_probs - sample.reference_log_probs).double().sum().item()

    def sample_settings(self) -> dict[str, Any]:
        """Advantages are of rewards less the divergence, where that is part of them."""
        taken = [self.kl.weight, self.kl.estimator] if self.kl.in_reward else None
        return {**super().sample_settings(), "kl in the reward": taken}

    def make_batch(
        self, packed: Packed, samples: Sequence[Sample], samples_per_prompt: int, max_new_tokens: int
    ) -> PolicyBatch:
        advantages_S = torch.tensor([sample.advantage for sample in samples], dtype=torch.float64)
        own_S = [sample.old_log_probs for sample in samples if sample.old_log_probs is not None]
        reference_S = [sample.reference_log_probs for sample in samples if sample.reference_log_probs is not None]
        return PolicyBatch(
            packed.tokens,
            packed.sample_N,
            len(samples),
            advantages_S.to(packed.sample_N.device)[packed.sample_N],
            packed.join(own_S) if own_S else None,
            packed.join([sample.engine_log_probs for sample in samples]),
            packed.join(reference_S) if reference_S else None,
            max_new_tokens,
        )

    # the step

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        self._log_rollout("train", batch.metrics)
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
