"""Clipped importance sampling policy optimisation (MiniMax-M1, arXiv 2506.13585, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnlit.interfaces import PolicyBatch, RewardTable
from lnlit.objectives.policy import LARGEST, TokenLoss
from lnlit.rl.algorithm import PolicyGradient, Scale, check_above_zero, scaled


@dataclass(frozen=True, kw_only=True)
class CISPO(PolicyGradient):
    """Clips the weight of a token, and never its gradient: rare tokens that turn a thought around are learned from.

    Args:
        scale: What rewards above their prompt's mean are divided by, as in GRPO.
        highest: The largest ratio of policy to old policy that weighs a token.
    """

    scale: Scale = "group"
    highest: float = 5.0

    def __post_init__(self) -> None:
        check_above_zero(highest=self.highest)

    def sample_settings(self) -> Mapping[str, Any]:
        return {**super().sample_settings(), "scale": self.scale}

    def advantages(self, table: RewardTable) -> Tensor:
        return scaled(self.reward(table), self.scale)

    def token_loss(self, log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        ratio_N = (log_probs_N - old_N).detach().clamp(max=LARGEST).exp()
        loss_N = -ratio_N.clamp(max=self.highest) * batch.advantages_N * log_probs_N
        is_high_N = (ratio_N > self.highest) & (batch.advantages_N > 0)
        return TokenLoss(loss_N, torch.zeros_like(is_high_N), is_high_N)
