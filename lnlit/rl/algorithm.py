"""What algorithms share that weigh tokens by an advantage: `reduction(correction * token_loss + kl)`.

An algorithm defines its advantages and the loss of a token. What several algorithms share is defined here:
`GroupRelative` defines advantages, `Clipped` a token loss, and `BehaviourRatio` which policy the ratio is taken to.

Shape suffixes: P prompts, G samples of each, N tokens of completions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import Algorithm, Loss, Needs, PolicyBatch, RewardTable
from lnlit.objectives import policy
from lnlit.objectives.advantage import centred, over_batch_std, over_group_std
from lnlit.objectives.kl import KL, k3
from lnlit.objectives.policy import Clip, Correction, RatioOf, TokenLoss, clipped_loss, log_ratios
from lnlit.schema import check

ReductionName = Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"]
#: The divisor of rewards above their prompt's mean.
Scale = Literal["group", "batch", "none"]

_SCALED = {"group": over_group_std, "batch": over_batch_std, "none": centred}


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Algorithm):
    """An algorithm except for its advantage and its loss per token, which a subclass defines.

    Args:
        reduction: "token_mean" weights all tokens of a step equally, "sequence_mean" all samples. "sequence_sum" is the
            mean over samples of sums over tokens, and "constant_length" divides that by the maximum length.
        kl: The penalty that keeps the policy near the reference. With weight 0, no reference is needed.
        correction: The correction for an engine whose probabilities differ from the trainer's; null for none.
    """

    reduction: ReductionName = "token_mean"
    kl: KL = KL()
    correction: Correction | None = Correction()

    def __post_init__(self) -> None:
        check(self, type(self).__name__)

    @abstractmethod
    def token_loss(self, log_probs_N: Tensor, drawn_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        """The loss of each token, before correction and KL penalty. `drawn_N` are the log-probs from `drawn`."""

    def drawn(self, old_N: Tensor, batch: PolicyBatch) -> Tensor:
        """Log-probs under the policy in the denominator of the ratio, [N]. By default `old_N`: the trainer's log-probs
        under the weights that drew the tokens. Before the first update these are `log_probs_N` without gradient."""
        return old_N

    @property
    def needs(self) -> Needs:
        return Needs(
            reference=self.kl.weight > 0, old_log_probs=self.kl.in_reward, exact_engine=self.correction is None
        )

    def sample_settings(self) -> Mapping[str, Any]:
        return {"kl in the reward": [self.kl.weight, self.kl.estimator] if self.kl.in_reward else None}

    def reward(self, table: RewardTable) -> Tensor:
        """The weighted sum of rewards, [P, G], minus the KL penalty if it is part of the reward."""
        return table.reward_PG - self.kl.weight * table.divergence_PG if self.kl.in_reward else table.reward_PG

    def loss(self, log_probs_N: Tensor, batch: PolicyBatch) -> Loss:
        old_N = log_probs_N.detach() if batch.old_N is None else batch.old_N
        found = self.token_loss(log_probs_N, self.drawn(old_N, batch), batch)
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


@dataclass(frozen=True, kw_only=True)
class GroupRelative(PolicyGradient):
    """The advantage of a sample is its reward minus the mean reward of its prompt, optionally scaled.

    Args:
        scale_rewards: The divisor of the advantage: the standard deviation of the rewards of the prompt's samples
            ("group") or of the whole batch ("batch"), or 1 ("none").
    """

    scale_rewards: Scale = "group"

    def sample_settings(self) -> Mapping[str, Any]:
        return {**super().sample_settings(), "scale_rewards": self.scale_rewards}

    def advantages(self, table: RewardTable) -> Tensor:
        return _SCALED[self.scale_rewards](self.reward(table))


@dataclass(frozen=True, kw_only=True)
class Clipped(PolicyGradient):
    """The token loss is PPO's clipped surrogate (arXiv 1707.06347, equation 7).

    Args:
        ratio: Whether the ratio of policy to old policy is taken for each "token" or for a whole sample.
        clip: The range of the ratio outside which a token has no gradient.
    """

    ratio: RatioOf = field(init=False, default="token")
    clip: Clip = Clip()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correction is not None and self.ratio != "token":
            raise UserError(
                f"correction weighs tokens, but ratio: {self.ratio} is one number for a whole sample. Use ratio: "
                "token, or correction: null."
            )

    def token_loss(self, log_probs_N: Tensor, drawn_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        log_ratio_N = log_ratios(log_probs_N, drawn_N, batch.sample_N, batch.samples, self.ratio)
        return clipped_loss(log_ratio_N, batch.advantages_N, self.clip)


@dataclass(frozen=True, kw_only=True)
class BehaviourRatio(GroupRelative):
    """The ratio is taken to the engine's log-probs, those of the behaviour policy. No correction is needed for an
    engine whose probabilities differ from the trainer's, because the ratio already contains the difference."""

    correction: Correction | None = field(init=False, default=None)

    @property
    def needs(self) -> Needs:
        return replace(super().needs, exact_engine=False)

    def drawn(self, old_N: Tensor, batch: PolicyBatch) -> Tensor:
        return old_N if batch.engine_N is None else batch.engine_N


def refuse_kl_in_reward(algorithm: PolicyGradient, why: str) -> None:
    """Raises `UserError` if the KL divergence is part of the reward and the algorithm cannot use such a reward. `why`
    completes the sentence that begins with the algorithm's name."""
    if algorithm.kl.in_reward:
        raise UserError(f"kl.place: {type(algorithm).__name__} {why}. Use place: score.")


def check_above_zero(**settings: float) -> None:
    """Raises `UserError` for a setting that is not a finite number above 0."""
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name}: expected a number above 0, got {value}")


def _observed(
    log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch, found: TokenLoss
) -> dict[str, tuple[Tensor, Tensor | int]]:
    """Metrics of the health of a run, as means over tokens."""
    clipped = {"low": found.clipped_low_N, "high": found.clipped_high_N}
    seen = {f"clip_ratio/{side}_mean": is_N for side, is_N in clipped.items() if is_N is not None}
    if seen:
        seen["clip_ratio/region_mean"] = torch.stack(list(seen.values())).any(0)
    if batch.reference_N is not None:
        seen["kl"] = k3(log_probs_N - batch.reference_N)
    if batch.engine_N is not None:
        seen["sampling/logp_difference"] = (old_N - batch.engine_N).abs()
        seen["sampling/importance_ratio"] = (old_N - batch.engine_N).exp()
    return {name: (values_N.double().sum(), len(values_N)) for name, values_N in seen.items()}
