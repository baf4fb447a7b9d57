"""Group reward-decoupled normalisation policy optimisation (GDPO, arXiv 2601.05242)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import PolicyBatch, RewardTable
from lnlit.objectives.advantage import decoupled, without_spread
from lnlit.objectives.policy import Clip, TokenLoss, clipped_loss
from lnlit.rl.algorithm import PolicyGradient, ratios


@dataclass(frozen=True, kw_only=True)
class GDPO(PolicyGradient):
    """Normalises each reward function by itself before they are summed, so that samples that earn the same sum in
    different ways do not count as equal, and none of the functions drowns in the spread of another.

    Args:
        clip: How far one batch of samples may move the policy.
    """

    clip: Clip = Clip()

    def __post_init__(self) -> None:
        if self.kl.in_reward:
            raise UserError(
                "kl.place: GDPO normalises each reward by itself, so a divergence cannot be part of one. Use place: "
                "score."
            )

    def advantages(self, table: RewardTable) -> Tensor:
        return decoupled(table.rewards_PGR, table.weights_R)

    def teaches_nothing(self, table: RewardTable) -> Tensor:
        """Likewise of each reward function: what is equal in sum need not be."""
        known_PG = ~table.reward_PG.isnan()
        flat_P = torch.ones(len(known_PG), dtype=torch.bool)
        for rewards_PG in table.rewards_PGR[..., table.weights_R != 0].unbind(-1):
            flat_P &= without_spread(torch.where(known_PG, rewards_PG, torch.nan))
        return flat_P

    def token_loss(self, log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        return clipped_loss(ratios(log_probs_N, old_N, batch, "token"), batch.advantages_N, self.clip)
