"""What algorithms share that weigh tokens by an advantage: `reduction(correction * token_loss + kl)`.

Shape suffixes: P prompts, G samples of each, N tokens of completions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import Algorithm, Loss, Needs, PolicyBatch, RewardTable
from lnlit.objectives import policy
from lnlit.objectives.advantage import centred, over_batch_std, over_group_std
from lnlit.objectives.kl import KL, k3
from lnlit.objectives.policy import Correction, RatioOf, TokenLoss, log_ratios

ReductionName = Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"]
#: What rewards above their prompt's mean are divided by.
Scale = Literal["group", "batch", "none"]

_SCALED = {"group": over_group_std, "batch": over_batch_std, "none": centred}


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Algorithm):
    """Says everything but what an advantage is and what a token's loss is.

    Args:
        reduction: "token_mean" weighs all tokens of a step alike, "sequence_mean" all samples, "sequence_sum" is the
            mean over samples of sums over tokens, "constant_length" divides those by the largest length.
        kl: What holds the policy near the reference; weight 0 needs none.
        correction: For samples of an engine whose probabilities differ from the trainer's; null for none.
    """

    reduction: ReductionName = "token_mean"
    kl: KL = KL()
    correction: Correction | None = Correction()

    @abstractmethod
    def token_loss(self, log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        """Of each token, without correction and divergence. `old_N` are the log-probs under the weights that drew it,
        `log_probs_N` without gradient where those are still the policy's."""

    @property
    def needs(self) -> Needs:
        return Needs(
            reference=self.kl.weight > 0, old_log_probs=self.kl.in_reward, exact_engine=self.correction is None
        )

    def sample_settings(self) -> Mapping[str, Any]:
        return {"kl in the reward": [self.kl.weight, self.kl.estimator] if self.kl.in_reward else None}

    def reward(self, table: RewardTable) -> Tensor:
        """[P, G]: the weighted sum less the divergence from the reference, where that is part of the reward."""
        return table.reward_PG - self.kl.weight * table.divergence_PG if self.kl.in_reward else table.reward_PG

    def loss(self, log_probs_N: Tensor, batch: PolicyBatch) -> Loss:
        old_N = log_probs_N.detach() if batch.old_N is None else batch.old_N
        found = self.token_loss(log_probs_N, old_N, batch)
        loss_N = found.loss_N
        if self.correction is not None and batch.engine_N is not None:
            loss_N = loss_N * self.correction.weights(old_N, batch.engine_N)
        if self.kl.in_loss:
            assert batch.reference_N is not None, "a KL in the loss needs the reference's log-probs"
            loss_N = loss_N + self.kl.penalty(log_probs_N, batch.reference_N, old_N)
        weight_N, count = self._reduced(batch)
        return Loss((weight_N * loss_N).sum(), count, _observed(log_probs_N.detach(), old_N, batch, found))

    def _reduced(self, batch: PolicyBatch) -> policy.Reduction:
        match self.reduction:
            case "token_mean":
                return policy.token_mean(batch.sample_N, batch.samples)
            case "sequence_mean":
                return policy.sequence_mean(batch.sample_N, batch.samples)
            case "sequence_sum":
                return policy.sequence_sum(batch.sample_N, batch.samples)
            case "constant_length":
                return policy.constant_length(batch.sample_N, batch.samples, batch.max_new_tokens)


def scaled(rewards_PG: Tensor, scale: Scale) -> Tensor:
    """Rewards above the mean of their prompt, over a standard deviation. [P, G]"""
    return _SCALED[scale](rewards_PG)


def ratios(log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch, of: RatioOf) -> Tensor:
    """log(policy / policy that drew the tokens), of each token or of whole samples. [N]"""
    return log_ratios(log_probs_N, old_N, batch.sample_N, batch.samples, of)


def check_correction(correction: Correction | None, ratio: RatioOf) -> None:
    """Raises `UserError` where tokens would be weighed of which a whole sample has but one ratio."""
    if correction is not None and ratio != "token":
        raise UserError(
            f"correction weighs tokens, but ratio: {ratio} is one number for a whole sample. Use ratio: token, or "
            "correction: null."
        )


def check_above_zero(**settings: float) -> None:
    """Raises `UserError` for a setting that is no finite number above 0."""
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name}: expected a number above 0, got {value}")


def _observed(
    log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch, found: TokenLoss
) -> dict[str, tuple[Tensor, Tensor | int]]:
    """What says whether a run is healthy, as means over tokens."""
    seen = {
        "clip_ratio/low_mean": found.clipped_low_N,
        "clip_ratio/high_mean": found.clipped_high_N,
        "clip_ratio/region_mean": found.clipped_low_N | found.clipped_high_N,
    }
    if batch.reference_N is not None:
        seen["kl"] = k3(log_probs_N - batch.reference_N)
    if batch.engine_N is not None:
        seen["sampling/logp_difference"] = (old_N - batch.engine_N).abs()
        seen["sampling/importance_ratio"] = (old_N - batch.engine_N).exp()
    return {name: (values_N.double().sum(), len(values_N)) for name, values_N in seen.items()}
