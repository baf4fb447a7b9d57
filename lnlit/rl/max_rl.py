"""Maximum likelihood reinforcement learning (MaxRL, arXiv 2602.02710)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import PolicyBatch, RewardTable
from lnlit.objectives.advantage import over_group_mean
from lnlit.objectives.policy import Clip, TokenLoss, clipped_loss
from lnlit.rl.algorithm import PolicyGradient, ratios


@dataclass(frozen=True, kw_only=True)
class MaxRL(PolicyGradient):
    """Divides by the prompt's mean reward, so that a prompt that is seldom solved weighs more: with G samples the
    gradient is that of log p(right), expanded to order G - 1. For rewards of 0 and 1, or at least none below 0, which
    is an error.

    Args:
        clip: How far one batch of samples may move the policy.
    """

    clip: Clip = Clip()

    def __post_init__(self) -> None:
        if self.kl.in_reward:
            raise UserError(
                "kl.place: MaxRL divides by a prompt's mean reward, which a divergence can bring to nothing. Use "
                "place: score."
            )

    def advantages(self, table: RewardTable) -> Tensor:
        reward_PG = self.reward(table)
        if (below := reward_PG[reward_PG < 0]).numel():
            raise UserError(
                "data.rewards: MaxRL divides by a prompt's mean reward, so none may be below 0; a sample got "
                f"{below.min().item():g}. Give it other rewards, or choose another model.algorithm."
            )
        return over_group_mean(reward_PG)

    def token_loss(self, log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        return clipped_loss(ratios(log_probs_N, old_N, batch, "token"), batch.advantages_N, self.clip)
