"""REINFORCE++ (arXiv 2501.03262)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from lnlit.interfaces import Needs, PolicyBatch, RewardTable
from lnlit.objectives.advantage import centred, whitened
from lnlit.objectives.kl import KL
from lnlit.objectives.policy import Clip, TokenLoss, clipped_loss
from lnlit.rl.algorithm import PolicyGradient, ratios


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlus(PolicyGradient):
    """Normalises over all tokens of a rollout and not over a prompt's few samples, whose deviation is a poor estimate.

    Args:
        baseline: What is taken from a reward first: the mean of its prompt ("group", the paper's variant with a
            baseline), or nothing ("none"), for which a sample of each prompt is enough.
        clip: How far one batch of samples may move the policy.
        kl: What holds the policy near the reference.
    """

    baseline: Literal["group", "none"] = "group"
    clip: Clip = Clip()
    kl: KL = KL(0.0, "k2", "loss")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, samples_per_prompt=2 if self.baseline == "group" else 1)

    def sample_settings(self) -> Mapping[str, Any]:
        return {**super().sample_settings(), "baseline": self.baseline}

    def advantages(self, table: RewardTable) -> Tensor:
        reward_PG = self.reward(table)
        known_PG = ~reward_PG.isnan()
        centred_PG = centred(reward_PG) if self.baseline == "group" else reward_PG.nan_to_num(0.0)
        return whitened(centred_PG, table.lengths_PG * known_PG)

    def teaches_nothing(self, table: RewardTable) -> Tensor:
        """Without a baseline a prompt is compared with all others, and even a single sample teaches. With one, prompts
        whose samples are equal are moved only by what the mean over the batch's tokens leaves."""
        return super().teaches_nothing(table) if self.baseline == "group" else table.reward_PG.isnan().all(1)

    def token_loss(self, log_probs_N: Tensor, old_N: Tensor, batch: PolicyBatch) -> TokenLoss:
        return clipped_loss(ratios(log_probs_N, old_N, batch, "token"), batch.advantages_N, self.clip)
