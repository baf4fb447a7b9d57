"""Group reward-decoupled normalisation policy optimisation (GDPO, arXiv 2601.05242)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lnlit.interfaces import RewardTable
from lnlit.objectives.advantage import complete, decoupled, without_spread
from lnlit.rl.algorithm import Clipped, refuse_kl_in_reward


@dataclass(frozen=True, kw_only=True)
class GDPO(Clipped):
    """Normalises each reward function separately before they are summed, so that different combinations of rewards with
    the same sum do not count as equal, and no function is drowned by the spread of another.

    Args:
        clip: The bounds of the ratio.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_kl_in_reward(self, "normalises each reward by itself, so a divergence cannot be part of one")

    def advantages(self, table: RewardTable) -> Tensor:
        return decoupled(table.rewards_PGR, table.weights_R)

    def teaches_nothing(self, table: RewardTable) -> Tensor:
        """True for prompts whose samples are equal in every reward function; an equal sum is not enough."""
        return without_spread(complete(table.rewards_PGR, table.weights_R)).all(-1)
