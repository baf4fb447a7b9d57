"""Group reward-decoupled normalisation policy optimisation (GDPO, arXiv 2601.05242)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lnlit.interfaces import RewardTable
from lnlit.objectives.advantage import complete, decoupled, without_spread
from lnlit.rl.algorithm import Clipped, refuse_kl_in_reward


@dataclass(frozen=True, kw_only=True)
class GDPO(Clipped):
    """Normalises each reward function by itself before they are summed, so that samples that earn the same sum in
    different ways do not count as equal, and none of the functions drowns in the spread of another.

    Args:
        clip: How far one batch of samples may move the policy.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_kl_in_reward(self, "normalises each reward by itself, so a divergence cannot be part of one")

    def advantages(self, table: RewardTable) -> Tensor:
        return decoupled(table.rewards_PGR, table.weights_R)

    def teaches_nothing(self, table: RewardTable) -> Tensor:
        """Likewise of each reward function: what is equal in sum need not be."""
        return without_spread(complete(table.rewards_PGR, table.weights_R)).all(-1)
