"""On-policy distillation by a teacher's log-probs of the policy's own tokens (arXiv 2306.13649, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import Needs, PolicyBatch, RewardTable
from lnlit.objectives.kl import KL
from lnlit.objectives.policy import TokenLoss
from lnlit.rl.algorithm import PolicyGradient


@dataclass(frozen=True, kw_only=True)
class OnPolicyDistill(PolicyGradient):
    """Moves the policy towards the reference, which is the teacher, on the policy's own samples. Rewards are only
    logged.

    It estimates KL(policy || teacher) from the sampled tokens alone. The method `OnPolicyDistill` computes it over the
    whole vocabulary instead, which has less noise and costs the teacher's head.

    Args:
        kl: The estimator of the divergence. The default's gradient is log(policy / teacher) of each token times that of
            its log-prob.
    """

    kl: KL = KL(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kl.in_loss:
            raise UserError("kl: nothing else is learned from, so a weight above 0, and place: score or loss")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, rewards=False, samples_per_prompt=1)

    def advantages(self, table: RewardTable) -> Tensor:
        return torch.zeros_like(table.reward_PG)

    def teaches_nothing(self, table: RewardTable) -> Tensor:
        return torch.zeros(len(table.reward_PG), dtype=torch.bool)

    def token_loss(self, log_probs_N: Tensor, drawn_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        return TokenLoss(torch.zeros_like(log_probs_N))
