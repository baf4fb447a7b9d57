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
    """Treats a whole completion as one action, and the mean reward of the prompt's other samples as its baseline.

    Args:
        ratio: Of policy to old policy for each "token", or for the whole "sequence" as one action, which the first
            update already drives out of the clipping range where completions are long. On policy both are the same.
        clip: How far one batch of samples may move the policy.
        kl: What holds the policy near the reference; by default it is taken from the reward, sample by sample.
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
