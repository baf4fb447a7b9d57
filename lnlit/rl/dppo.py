"""Divergence proximal policy optimisation (DPPO, arXiv 2602.04879), with the total variation of the drawn token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import Needs, PolicyBatch, RewardTable
from lnlit.objectives.policy import LARGEST, Correction, TokenLoss
from lnlit.rl.algorithm import PolicyGradient, Scale, scaled


@dataclass(frozen=True, kw_only=True)
class DPPO(PolicyGradient):
    """Leaves a token out once its probability, not its ratio, has moved too far in the direction of its advantage: a
    ratio says little of a rare token. Both are to the engine's log-probs, so that there is nothing to correct.

    Args:
        scale: What rewards above their prompt's mean are divided by, as in GRPO.
        largest: How far a token's probability may move, from 0 to 1.
    """

    scale: Scale = "none"
    largest: float = 0.2
    correction: Correction | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not 0 < self.largest <= 1:
            raise UserError(f"largest: a probability moves by more than 0 and at most 1, got {self.largest}")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, exact_engine=False)

    def sample_settings(self) -> Mapping[str, Any]:
        return {**super().sample_settings(), "scale": self.scale}

    def advantages(self, table: RewardTable) -> Tensor:
        return scaled(self.reward(table), self.scale)

    def token_loss(self, log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        drawn_N = old_N if batch.engine_N is None else batch.engine_N
        ratio_N = (log_probs_N - drawn_N).clamp(max=LARGEST).exp()
        moved_N = log_probs_N.detach().exp() - drawn_N.exp()
        is_low_N = (moved_N < -self.largest) & (batch.advantages_N < 0)
        is_high_N = (moved_N > self.largest) & (batch.advantages_N > 0)
        return TokenLoss(-ratio_N * batch.advantages_N * ~(is_low_N | is_high_N), is_low_N, is_high_N)
