"""REINFORCE with a leave-one-out baseline (arXiv 2402.14740; Llama-Nemotron section 6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import RewardTable
from lnlit.objectives.advantage import leave_one_out
from lnlit.objectives.kl import KL
from lnlit.rl.algorithm import Clipped, ReductionName


@dataclass(frozen=True, kw_only=True)
class RLOO(Clipped):
    """Treats a whole completion as one action, with the mean reward of the prompt's other samples as its baseline.

    Args:
        ratio: The ratio of policy to old policy of each "token", or of the whole "sequence" as one action. For long
            completions, the first update already drives the latter out of the clipping range. On policy both are the
            same.
        clip: The bounds of the ratio.
        kl: The penalty that keeps the policy near the reference. By default it is subtracted from the reward of each
            sample.
    """

    ratio: Literal["token", "sequence"] = "token"
    kl: KL = KL(0.05, "k1", "reward")
    reduction: ReductionName = field(init=False, default="sequence_sum")

    def __post_init__(self) -> None:
        if self.ratio == "sequence":
            if self.kl.in_loss:
                raise UserError(
                    "kl.place: with ratio: sequence a sample's loss is one number, and its divergence would be divided "
                    "by its tokens' count. Use place: reward, or ratio: token."
                )
            # All tokens of a sample carry its one term, and their mean is that term.
            object.__setattr__(self, "reduction", "sequence_mean")
        super().__post_init__()

    def advantages(self, table: RewardTable) -> Tensor:
        return leave_one_out(self.reward(table))
