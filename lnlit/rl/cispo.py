"""Clipped importance sampling policy optimisation (MiniMax-M1, arXiv 2506.13585, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lnlit.interfaces import PolicyBatch
from lnlit.objectives.policy import TokenLoss, bounded_exp
from lnlit.rl.algorithm import GroupRelative, check_above_zero


@dataclass(frozen=True, kw_only=True)
class CISPO(GroupRelative):
    """Clips the weight of a token but never its gradient, so that rare tokens that change the course of a thought are
    still learned from.

    Args:
        scale_rewards: The divisor of rewards above their prompt's mean, as in GRPO.
        max_ratio: The maximum ratio of policy to old policy by which a token is weighted.
    """

    max_ratio: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(max_ratio=self.max_ratio)

    def token_loss(self, log_probs_N: Tensor, drawn_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        ratio_N = bounded_exp(log_probs_N.detach() - drawn_N)
        loss_N = -ratio_N.clamp(max=self.max_ratio) * batch.advantages_N * log_probs_N
        return TokenLoss(loss_N, clipped_high_N=(ratio_N > self.max_ratio) & (batch.advantages_N > 0))
