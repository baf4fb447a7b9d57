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
    """Weighs a sample by w^k exp(l (1 - w)) of its ratio w of policy to engine, which falls on both sides of its top.

    Args:
        scale: What rewards above their prompt's mean are divided by, as in GRPO.
        positive: (k, l) where the advantage is not negative.
        negative: Likewise where it is.
    """

    positive: tuple[float, float] = (2.0, 3.0)
    negative: tuple[float, float] = (3.0, 2.0)

    def __post_init__(self) -> None:
        check_above_zero(positive=min(self.positive), negative=min(self.negative))

    def token_loss(self, log_probs_N: Tensor, drawn_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        far_N = (log_probs_N.detach() - drawn_N).clamp(-LARGEST, LARGEST)
        log_w_N = sums(far_N, batch.sample_N, batch.samples).clamp(_LEAST, LARGEST)[batch.sample_N]
        positive_2, negative_2 = log_probs_N.new_tensor([self.positive, self.negative])
        k_N, l_N = torch.where(batch.advantages_N >= 0, positive_2[:, None], negative_2[:, None])
        weight_N = (l_N + k_N * log_w_N - l_N * log_w_N.exp()).exp()
        return TokenLoss(-weight_N * batch.advantages_N * log_probs_N)
