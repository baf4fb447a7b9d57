"""Variational sequence-level soft policy optimisation (VESPO, arXiv 2602.10693)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lnlit.interfaces import Needs, PolicyBatch, RewardTable
from lnlit.objectives.policy import LARGEST, Correction, TokenLoss, sums
from lnlit.rl.algorithm import PolicyGradient, Scale, check_above_zero, scaled

_LEAST = math.log(1e-8)


@dataclass(frozen=True, kw_only=True)
class VESPO(PolicyGradient):
    """Weighs a sample by w^k exp(l (1 - w)) of its ratio w of policy to engine, which falls on both sides of its top.
    The engine's own log-probs are in the ratio, so that there is nothing to correct.

    Args:
        scale: What rewards above their prompt's mean are divided by, as in GRPO.
        positive: (k, l) where the advantage is not negative.
        negative: Likewise where it is.
    """

    scale: Scale = "group"
    positive: tuple[float, float] = (2.0, 3.0)
    negative: tuple[float, float] = (3.0, 2.0)
    correction: Correction | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_above_zero(positive=min(self.positive), negative=min(self.negative))

    @property
    def needs(self) -> Needs:
        return replace(super().needs, exact_engine=False)

    def sample_settings(self) -> Mapping[str, Any]:
        return {**super().sample_settings(), "scale": self.scale}

    def advantages(self, table: RewardTable) -> Tensor:
        return scaled(self.reward(table), self.scale)

    def token_loss(self, log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        drawn_N = old_N if batch.engine_N is None else batch.engine_N
        far_N = (log_probs_N.detach() - drawn_N).clamp(-LARGEST, LARGEST)
        log_w_N = sums(far_N, batch.sample_N, batch.samples).clamp(_LEAST, LARGEST)[batch.sample_N]
        k_N, l_N = (
            torch.where(batch.advantages_N >= 0, *pair) for pair in zip(self.positive, self.negative, strict=True)
        )
        weight_N = (l_N + k_N * log_w_N - l_N * log_w_N.exp()).exp()
        never_N = torch.zeros_like(batch.sample_N, dtype=torch.bool)
        return TokenLoss(-weight_N * batch.advantages_N * log_probs_N, never_N, never_N)
