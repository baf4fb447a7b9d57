"""Maximum likelihood reinforcement learning (MaxRL, arXiv 2602.02710)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import RewardTable
from lnlit.objectives.advantage import over_group_mean
from lnlit.rl.algorithm import Clipped, refuse_kl_in_reward


@dataclass(frozen=True, kw_only=True)
class MaxRL(Clipped):
    """Divides by the prompt's mean reward, so that rarely solved prompts weigh more. With G samples, the gradient is
    that of log p(correct), expanded to order G - 1. Rewards must be 0 or more, usually 0 and 1; others are refused.

    Args:
        clip: The bounds of the ratio.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_kl_in_reward(self, "divides by a prompt's mean reward, which a divergence can bring to nothing")

    def advantages(self, table: RewardTable) -> Tensor:
        reward_PG = table.reward_PG
        if (below := reward_PG[reward_PG < 0]).numel():
            raise UserError(
                "data.rewards: MaxRL divides by a prompt's mean reward, so none may be below 0; a sample got "
                f"{below.min().item():g}. Give it other rewards, or choose another model.algorithm."
            )
        return over_group_mean(reward_PG)
