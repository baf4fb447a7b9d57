"""Advantages: how much better a sample is than the other samples of its prompt.

Shape suffixes: P prompts, G samples per prompt. A reward of NaN means that there is none: it counts in no mean, and the
sample's advantage is 0. Sums are in fp64, so that equal rewards have no spread: in fp32, a rounding error divided by
another can be an advantage of thousands.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to standard deviations, as TRL does (`scale_rewards="group"`).
EPSILON = 1e-4


def centred(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean of its prompt (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    known_PG, mean_P1, _ = _spread(rewards_PG)
    return torch.where(known_PG, rewards_PG.double() - mean_P1, 0.0)


def over_group_std(rewards_PG: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Reward minus mean over standard deviation of its prompt (GRPO, arXiv 2402.03300, section 4.1.2).

    The deviation is the sample's (n - 1).
    """
    _, _, std_P1 = _spread(rewards_PG)
    return centred(rewards_PG) / (std_P1 + epsilon)


def over_batch_std(rewards_PG: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Reward minus the mean of its prompt, over the standard deviation of all rewards of the batch (n - 1)."""
    _, _, std_11 = _spread(rewards_PG.reshape(1, -1))
    return centred(rewards_PG) / (std_11 + epsilon)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean of its siblings (RLOO, arXiv 2402.14740, equation 8).

    This is `centred` times n / (n - 1). There is no division by a deviation: the leave-one-out one would rank a group
    with one success below a group with two. A sample without siblings has advantage 0.
    """
    known_PG, _, _ = _spread(rewards_PG)
    count_P1 = known_PG.sum(1, keepdim=True)
    return centred(rewards_PG) * count_P1 / (count_P1 - 1).clamp(min=1)


def over_group_mean(rewards_PG: Tensor) -> Tensor:
    """Reward minus mean over mean of its prompt (MaxRL, arXiv 2602.02710); 0 where the mean is not above 0."""
    _, mean_P1, _ = _spread(rewards_PG)
    return torch.where(mean_P1 > 0, centred(rewards_PG) / mean_P1, 0.0)


def decoupled(rewards_PGR: Tensor, weights_R: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Each reward function over its own deviation within the prompt, summed by weight, and that over its mean and
    deviation in the batch (GDPO, arXiv 2601.05242, section 3). [P, G]; R reward functions.

    A sample for which one of the counted rewards is missing is left out of all of them. If it took part in some of the
    means, the advantages of its siblings would not add up to 0, and subtracting the mean of the batch would shift the
    advantages of every prompt.
    """
    rewards_PGR = complete(rewards_PGR, weights_R)
    sum_PG = (over_group_std(rewards_PGR, epsilon) * weights_R[weights_R != 0]).sum(-1)
    sum_PG = torch.where(rewards_PGR.isnan().any(-1), torch.nan, sum_PG)
    return over_group_std(sum_PG.view(1, -1), epsilon).view_as(sum_PG)


def complete(rewards_PGR: Tensor, weights_R: Tensor) -> Tensor:
    """The counted rewards, those with a weight other than 0. All of them are NaN for a sample where one is missing."""
    counted_PGR = rewards_PGR[..., weights_R != 0]
    return counted_PGR.masked_fill(counted_PGR.isnan().any(-1, keepdim=True), torch.nan)


def whitened(values_PG: Tensor, lengths_PG: Tensor) -> Tensor:
    """Each value minus the mean, divided by the standard deviation, over all tokens of a batch. All `lengths_PG` tokens
    of a sample have its value (REINFORCE++, arXiv 2501.03262). Samples without tokens get 0."""
    tokens = lengths_PG.sum().clamp(min=1)
    mean = (values_PG * lengths_PG).sum() / tokens
    variance = ((values_PG - mean).square() * lengths_PG).sum() / tokens
    return torch.where(lengths_PG > 0, (values_PG - mean) / (variance.sqrt() + 1e-8), 0.0)


def without_spread(rewards_PG: Tensor) -> Tensor:
    """True for prompts whose samples all have the same reward, bool [P]: they teach nothing. For several reward
    functions, maps [P, G, R] to [P, R]."""
    return _spread(rewards_PG)[2][:, 0] == 0


def _spread(rewards_PG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mask of known rewards, mean [P, 1], standard deviation [P, 1]); the latter is exactly 0 if all known rewards are
    equal."""
    rewards_PG = rewards_PG.double()
    known_PG = ~rewards_PG.isnan()
    count_P1 = known_PG.sum(1, keepdim=True)
    filled_PG = torch.where(known_PG, rewards_PG, 0.0)
    lowest_P1 = torch.where(known_PG, rewards_PG, torch.inf).amin(1, keepdim=True)
    highest_P1 = torch.where(known_PG, rewards_PG, -torch.inf).amax(1, keepdim=True)
    mean_P1 = filled_PG.sum(1, keepdim=True) / count_P1.clamp(min=1)
    mean_P1 = torch.where(lowest_P1 == highest_P1, lowest_P1, mean_P1)
    squares_P1 = torch.where(known_PG, rewards_PG - mean_P1, 0.0).square().sum(1, keepdim=True)
    return known_PG, mean_P1, (squares_P1 / (count_P1 - 1).clamp(min=1)).sqrt()
