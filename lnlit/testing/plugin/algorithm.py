"""An algorithm: advantages from rewards, and the loss of the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lnlit.interfaces import Algorithm, Loss, PolicyBatch, RewardTable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Example(Algorithm):
    """REINFORCE with the mean of a prompt's samples as baseline: the loss is -advantage * log-prob, for one update per
    rollout.

    Args:
        scale: A factor for all advantages.
    """

    scale: float = 1.0

    def advantages(self, table: RewardTable) -> Tensor:
        reward_PG = table.reward_PG
        above_PG = reward_PG - reward_PG.nanmean(1, keepdim=True)
        return self.scale * above_PG.nan_to_num(0.0)  # a reward of NaN could not be given

    def loss(self, log_probs_N: Tensor, batch: PolicyBatch) -> Loss:
        return Loss(-(batch.advantages_N * log_probs_N).sum(), len(log_probs_N))
