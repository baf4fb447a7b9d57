"""REINFORCE++ (arXiv 2501.03262)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from lnlit.interfaces import Needs, RewardTable
from lnlit.objectives.advantage import centred, whitened
from lnlit.objectives.kl import KL
from lnlit.rl.algorithm import Clipped


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlus(Clipped):
    """Normalises over all tokens of a rollout and not over a prompt's few samples, whose deviation is a poor estimate.

    The mean over all tokens is subtracted with a baseline too. This is the formula of the paper (version 9, section
    "REINFORCE++ w/ Baseline"), and OpenRLHF, verl and NeMo-RL compute the same. Each sample counts once per token, so
    this mean differs from 0 if better samples are longer or shorter than others. It then shifts every advantage by the
    same amount, including those of prompts whose samples all have the same reward.

    Args:
        baseline: What is taken from a reward first: the mean of its prompt ("group", the paper's variant with a
            baseline), or nothing ("none"), for which a sample of each prompt is enough.
        clip: How far one batch of samples may move the policy.
        kl: What holds the policy near the reference.
    """

    baseline: Literal["group", "none"] = "group"
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
        """True for prompts to leave out, bool [P]. Without a baseline these are only prompts without any reward, since
        each sample is compared with those of all prompts, and so even a single one teaches."""
        return super().teaches_nothing(table) if self.baseline == "group" else table.reward_PG.isnan().all(1)
