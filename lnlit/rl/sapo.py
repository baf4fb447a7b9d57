"""Soft adaptive policy optimisation (arXiv 2511.20347)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnlit.interfaces import PolicyBatch, RewardTable
from lnlit.objectives.policy import LARGEST, TokenLoss
from lnlit.rl.algorithm import PolicyGradient, ReductionName, Scale, check_above_zero, scaled


@dataclass(frozen=True, kw_only=True)
class SAPO(PolicyGradient):
    """A gate that closes softly, as a token's ratio leaves 1, takes the place of the clip: 4 / t * sigmoid(t (r - 1)).

    Args:
        scale: What rewards above their prompt's mean are divided by, as in GRPO.
        positive: Temperature t of the gate where the advantage is positive; higher closes sooner.
        negative: Likewise where it is not.
    """

    scale: Scale = "group"
    positive: float = 1.0
    negative: float = 1.05
    reduction: ReductionName = "sequence_mean"

    def __post_init__(self) -> None:
        check_above_zero(positive=self.positive, negative=self.negative)

    def sample_settings(self) -> Mapping[str, Any]:
        return {**super().sample_settings(), "scale": self.scale}

    def advantages(self, table: RewardTable) -> Tensor:
        return scaled(self.reward(table), self.scale)

    def token_loss(self, log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        ratio_N = (log_probs_N - old_N).clamp(max=LARGEST).exp()
        gate_N = torch.where(batch.advantages_N > 0, self.positive, self.negative)
        soft_N = torch.sigmoid(gate_N * (ratio_N - 1)) * 4 / gate_N
        never_N = torch.zeros_like(batch.sample_N, dtype=torch.bool)
        return TokenLoss(-soft_N * batch.advantages_N, never_N, never_N)
