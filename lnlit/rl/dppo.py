"""Divergence proximal policy optimisation (DPPO, arXiv 2602.04879), with the total variation of the sampled token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import PolicyBatch
from lnlit.objectives.policy import TokenLoss, bounded_exp
from lnlit.rl.algorithm import BehaviourRatio, Scale


@dataclass(frozen=True, kw_only=True)
class DPPO(BehaviourRatio):
    """Leaves out a token if its probability, not its ratio, has moved too far in the direction of its advantage. For
    rare tokens the ratio says little.

    Args:
        scale_rewards: The divisor of rewards above their prompt's mean, as in GRPO.
        max_probability_change: The maximum change of a token's probability, from 0 to 1.
    """

    scale_rewards: Scale = "none"
    max_probability_change: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.max_probability_change <= 1:
            raise UserError(
                "max_probability_change: a probability moves by more than 0 and at most 1, got "
                f"{self.max_probability_change}"
            )

    def token_loss(self, log_probs_N: Tensor, drawn_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        ratio_N = bounded_exp(log_probs_N - drawn_N)
        moved_N = log_probs_N.detach().exp() - drawn_N.exp()
        is_low_N = (moved_N < -self.max_probability_change) & (batch.advantages_N < 0)
        is_high_N = (moved_N > self.max_probability_change) & (batch.advantages_N > 0)
        return TokenLoss(-ratio_N * batch.advantages_N * ~(is_low_N | is_high_N), is_low_N, is_high_N)
