"""Interface `algorithm`: how a policy learns from its own completions.

An algorithm is two pure functions: one from a table of rewards to advantages, one from log-probs to a loss. It does not
know where prompts, samples and gradients come from.

Shape suffixes: P prompts, G samples per prompt, R reward functions, N completion tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lnlit.interfaces.batch import PolicyBatch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """The data that an algorithm requires with each sample, and the conditions under which it is correct.

    Args:
        reference: The algorithm needs log-probs under the reference model.
        rewards: The algorithm learns from rewards. Otherwise they are only logged, and there may be none.
        old_log_probs: The algorithm needs the log-probs under the weights that drew the samples even on the first
            update after a rollout, when they equal the policy's current ones. Later updates always have them.
        whole_prompts: All samples of a prompt must be in the same micro-batch.
        samples_per_prompt: The smallest number of samples per prompt that the algorithm can learn from.
        exact_engine: The engine must compute as precisely as the trainer, because the loss does not correct for a
            difference.
        deterministic: Dropout must be off, so that the ratio of new to old log-probs contains no noise.
    """

    reference: bool = False
    rewards: bool = True
    old_log_probs: bool = False
    whole_prompts: bool = False
    samples_per_prompt: int = 2
    exact_engine: bool = False
    deterministic: bool = True


@dataclass(frozen=True)
class RewardTable:
    """The rewards of one rollout's samples, in fp64 on the CPU.

    `rewards_PGR` holds the value of each reward function, NaN where it gave no verdict, and `weights_R` the weight of
    each. `lengths_PG` counts the completion tokens that the policy learns from. `divergence_PG` is log(policy /
    reference) of each completion in nats, under the weights that drew it; it is 0 unless the algorithm needs both
    log-probs.
    """

    rewards_PGR: Tensor
    weights_R: Tensor
    lengths_PG: Tensor
    divergence_PG: Tensor

    @property
    def reward_PG(self) -> Tensor:
        """The weighted sum of a sample's rewards, [P, G]; NaN if one of them is. Rewards of weight 0 are logged only:
        they are left out of the sum, even when they are NaN."""
        counts_R = self.weights_R != 0
        return (self.rewards_PGR[..., counts_R] * self.weights_R[counts_R]).sum(-1)


class Loss(NamedTuple):
    """A micro-batch's contribution to the loss of an optimizer step, which is the sum of all `total`s divided by the
    sum of all `count`s.

    `observed` holds further quantities to log, each as (sum, count); their ratio over the step is the logged mean.
    """

    total: Tensor
    count: int
    observed: Mapping[str, tuple[Tensor, Tensor | int]] = {}


class Algorithm(ABC):
    """Base class of algorithms. The constructor takes settings only, and an instance keeps no state between calls."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def sample_settings(self) -> Mapping[str, Any]:
        """The settings that give the advantages stored in a checkpoint their meaning, as plain data. A run that resumes
        with other ones is refused."""
        return {}

    @abstractmethod
    def advantages(self, table: RewardTable) -> Tensor:
        """The advantage of each sample over its baseline, [P, G]; 0 where it is unknown. `table` holds a whole rollout,
        with the samples of all ranks."""

    def teaches_nothing(self, table: RewardTable) -> Tensor:
        """True for prompts whose samples all have the same reward, bool [P]. Dynamic sampling replaces them by other
        prompts. It runs before reference log-probs are computed, so `table.divergence_PG` is 0."""
        reward_PG = table.reward_PG
        return reward_PG.nan_to_num(nan=math.inf).amin(1) >= reward_PG.nan_to_num(nan=-math.inf).amax(1)

    @abstractmethod
    def loss(self, log_probs_N: Tensor, batch: PolicyBatch) -> Loss:
        """The loss of a micro-batch. `log_probs_N` are the policy's log-probs, the only input with a gradient."""
