"""Socket `algorithm`: how a policy learns from completions of its own.

An algorithm is plain maths between two tables: rewards in, advantages out, and a loss of log-probs. Where prompts,
samples and gradients come from it does not know.

Shape suffixes: P prompts, G samples of each, R reward functions, N tokens of completions.
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
    """What an algorithm asks of the samples that it learns from.

    Args:
        reference: Their log-probs under the reference.
        old_log_probs: Their log-probs under the weights that drew them on the first update after a rollout as well,
            where these are still the policy's own. Later updates have them in any case.
        whole_prompts: All samples of a prompt in one micro-batch.
        samples_per_prompt: The least number of samples that makes sense.
        exact_engine: An engine that computes as precisely as the trainer, because nothing here corrects for another.
        no_dropout: Log-probs in training that are those of sampling, so that a ratio of the two is not noise.
    """

    reference: bool = False
    old_log_probs: bool = False
    whole_prompts: bool = False
    samples_per_prompt: int = 2
    exact_engine: bool = False
    no_dropout: bool = True


@dataclass(frozen=True)
class RewardTable:
    """What is known of a rollout's samples when they are compared, in fp64 on the CPU.

    `rewards_PGR` is each reward function's verdict, NaN where there is none, and `weights_R` its weight. `lengths_PG`
    counts the tokens that are learned from. `divergence_PG` is log(policy / reference) of each completion in nats,
    under the weights that drew it, 0 where an algorithm does not need both log-probs.
    """

    rewards_PGR: Tensor
    weights_R: Tensor
    lengths_PG: Tensor
    divergence_PG: Tensor

    @property
    def reward_PG(self) -> Tensor:
        """The weighted sum, NaN where a part is. What is only watched decides nothing, not even by its absence."""
        counts_R = self.weights_R != 0
        return (self.rewards_PGR[..., counts_R] * self.weights_R[counts_R]).sum(-1)


class Loss(NamedTuple):
    """A micro-batch's part of a step. The loss of the step is the sum of its `total`s over the sum of its `count`s.

    `observed` are other quantities to log, as (sum, count) whose ratio over the step is their mean.
    """

    total: Tensor
    count: int
    observed: Mapping[str, tuple[Tensor, Tensor | int]] = {}


class Algorithm(ABC):
    """Constructed from its settings alone, and without a memory of its own."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def sample_settings(self) -> Mapping[str, Any]:
        """The settings, as plain data, without which advantages in a checkpoint mean nothing."""
        return {}

    @abstractmethod
    def advantages(self, table: RewardTable) -> Tensor:
        """How much better each sample is than was to be expected, [P, G]; 0 where nobody knows. Sees a whole rollout,
        with the samples of all ranks."""

    def teaches_nothing(self, table: RewardTable) -> Tensor:
        """Prompts of whose samples none is better than another, bool [P]: others can be drawn in their place
        (`resample`). What is learned and diverges is not known yet."""
        reward_PG = table.reward_PG
        return reward_PG.nan_to_num(nan=math.inf).amin(1) >= reward_PG.nan_to_num(nan=-math.inf).amax(1)

    @abstractmethod
    def loss(self, log_probs_N: Tensor, batch: PolicyBatch) -> Loss:
        """The loss of a micro-batch. `log_probs_N` are the policy's, the only input with a gradient."""
