"""What a reward model learns from: which of a prompt's completions is better, or by how much each is good.

Shape suffixes: P prompts, K completions of each.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid


class Pairs(NamedTuple):
    """Means over a prompt's pairs of unequal rewards, [P]; 0 for a prompt without any, whose `has_pairs_P` is False.
    Of accuracy, pairs of equal scores are half right."""

    loss_P: Tensor
    accuracy_P: Tensor
    margin_P: Tensor
    has_pairs_P: Tensor


def bradley_terry(scores_PK: Tensor, rewards_PK: Tensor, centre: float = 0.0) -> Pairs:
    """-log sigmoid(better score - worse score) over all pairs (InstructGPT, arXiv 2203.02155, equation 1).

    Only differences of scores matter to it; `centre` times the square of their sum keeps the scores around 0
    (arXiv 2312.09244, section 2).
    """
    better_PKK = rewards_PK[:, :, None] > rewards_PK[:, None, :]
    difference_PKK = scores_PK[:, :, None] - scores_PK[:, None, :]
    total_PKK = scores_PK[:, :, None] + scores_PK[:, None, :]
    count_P = better_PKK.sum((1, 2))

    def mean(values_PKK: Tensor) -> Tensor:
        return (values_PKK * better_PKK).sum((1, 2)) / count_P.clamp(min=1)

    return Pairs(
        mean(centre * total_PKK**2 - logsigmoid(difference_PKK)),
        mean(_right(difference_PKK)),
        mean(difference_PKK),
        count_P > 0,
    )


def pair_accuracy(scores_PK: Tensor, rewards_PK: Tensor) -> tuple[Tensor, Tensor]:
    """([P], bool [P]): the share of a prompt's pairs of unequal rewards that the scores put in the same order, equal
    scores counting half; and which prompts have such a pair."""
    better_PKK = rewards_PK[:, :, None] > rewards_PK[:, None, :]
    right_PKK = _right(scores_PK[:, :, None] - scores_PK[:, None, :])
    count_P = better_PKK.sum((1, 2))
    return (right_PKK * better_PKK).sum((1, 2)) / count_P.clamp(min=1), count_P > 0


def _right(difference_PKK: Tensor) -> Tensor:
    """Of who cannot tell two apart, half of the guesses are right."""
    return (difference_PKK.sign() + 1) / 2


def regression(scores_PK: Tensor, rewards_PK: Tensor) -> Tensor:
    """Mean squared distance of the scores to the rewards, [P]."""
    return ((scores_PK - rewards_PK) ** 2).mean(1)
