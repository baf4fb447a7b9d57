"""Maximum likelihood reinforcement learning (MaxRL, arXiv 2602.02710)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lnlit.interfaces import PolicyBatch, RewardTable
from lnlit.objectives.advantage import over_group_mean
from lnlit.objectives.policy import Clip, TokenLoss, clipped_loss
from lnlit.rl.algorithm import PolicyGradient, ratios


@dataclass(frozen=True, kw_only=True)
class MaxRL(PolicyGradient):
    """Divides by the prompt's mean reward, so that a prompt that is seldom solved weighs more: with G samples the
    gradient is that of log p(right), expanded to order G - 1. For rewards of 0 and 1, or at least none below 0.

    Args:
        clip: How far one batch of samples may move the policy.
    """

    clip: Clip = Clip()

    def advantages(self, table: RewardTable) -> Tensor:
        return over_group_mean(self.reward(table))

    def token_loss(self, log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        return clipped_loss(ratios(log_probs_N, old_N, batch, "token"), batch.advantages_N, self.clip)
