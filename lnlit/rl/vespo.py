"""Variational sequence-level soft policy optimisation (VESPO, arXiv 2602.10693)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lnlit.interfaces import PolicyBatch
from lnlit.objectives.policy import LARGEST, TokenLoss, sums
from lnlit.rl.algorithm import BehaviourRatio, check_above_zero

_LEAST = math.log(1e-8)


@dataclass(frozen=True, kw_only=True)
class VESPO(BehaviourRatio):
    """Weights a sample by w^k exp(l (1 - w)), where w is its ratio of policy to engine. The weight falls on both sides
    of its maximum.

    Args:
        scale_rewards: The divisor of rewards above their prompt's mean, as in GRPO.
        positive: (k, l) for advantages of 0 or more.
        negative: (k, l) for negative advantages.
    """

    positive: tuple[float, float] = (2.0, 3.0)
    negative: tuple[float, float] = (3.0, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(positive=min(self.positive), negative=min(self.negative))

    def token_loss(self, log_probs_N: Tensor, drawn_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        far_N = (log_probs_N.detach() - drawn_N).clamp(-LARGEST, LARGEST)
        log_w_N = sums(far_N, batch.sample_N, batch.samples).clamp(_LEAST, LARGEST)[batch.sample_N]
        positive_2, negative_2 = log_probs_N.new_tensor([self.positive, self.negative])
        k_N, l_N = torch.where(batch.advantages_N >= 0, positive_2[:, None], negative_2[:, None])
        weight_N = (l_N + k_N * log_w_N - l_N * log_w_N.exp()).exp()
        return TokenLoss(-weight_N * batch.advantages_N * log_probs_N)
