"""Soft adaptive policy optimisation (arXiv 2511.20347)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lnlit.interfaces import PolicyBatch
from lnlit.objectives.policy import TokenLoss, bounded_exp
from lnlit.rl.algorithm import GroupRelative, ReductionName, check_above_zero


@dataclass(frozen=True, kw_only=True)
class SAPO(GroupRelative):
    """Replaces the clip by a gate that closes smoothly as a token's ratio r leaves 1: 4 / t * sigmoid(t (r - 1)).

    Args:
        scale_rewards: The divisor of rewards above their prompt's mean, as in GRPO.
        positive_temperature: Temperature t of the gate for positive advantages; a higher one closes sooner.
        negative_temperature: Temperature t of the gate for other advantages.
    """

    positive_temperature: float = 1.0
    negative_temperature: float = 1.05
    reduction: ReductionName = "sequence_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(positive_temperature=self.positive_temperature, negative_temperature=self.negative_temperature)

    def token_loss(self, log_probs_N: Tensor, drawn_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        ratio_N = bounded_exp(log_probs_N - drawn_N)
        positive, negative = log_probs_N.new_tensor([self.positive_temperature, self.negative_temperature])
        gate_N = torch.where(batch.advantages_N > 0, positive, negative)
        return TokenLoss(-torch.sigmoid(gate_N * (ratio_N - 1)) * 4 / gate_N * batch.advantages_N)
