"""Losses of reward models: from which completion of a prompt is better, or from how good each is.

Shape suffixes: P prompts, K completions per prompt.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid


class Pairs(NamedTuple):
    """Means over a prompt's pairs of unequal rewards, [P]; 0 for a prompt without such pairs, whose `has_pairs_P` is
    False. In the accuracy, a pair with equal scores counts half."""

    loss_P: Tensor
    accuracy_P: Tensor
    margin_P: Tensor
    has_pairs_P: Tensor


def bradley_terry(scores_PK: Tensor, rewards_PK: Tensor, centre: float = 0.0) -> Pairs:
    """The loss -log sigmoid(better score - worse score) over all pairs (InstructGPT, arXiv 2203.02155, equation 1).

    It depends on differences only. Adding `centre` times the squared sum of a pair's scores keeps them around 0 (arXiv
    2312.09244, section 2).
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
    """(fraction of a prompt's pairs of unequal rewards that the scores order correctly [P], whether the prompt has such
    a pair, bool [P]). A pair with equal scores counts half."""
    better_PKK = rewards_PK[:, :, None] > rewards_PK[:, None, :]
    right_PKK = _right(scores_PK[:, :, None] - scores_PK[:, None, :])
    count_P = better_PKK.sum((1, 2))
    return (right_PKK * better_PKK).sum((1, 2)) / count_P.clamp(min=1), count_P > 0


def _right(difference_PKK: Tensor) -> Tensor:
    """1 for a correctly ordered pair, 0 for a wrong one, 0.5 for equal scores, since half of such guesses are
    correct."""
    return (difference_PKK.sign() + 1) / 2


def regression(scores_PK: Tensor, rewards_PK: Tensor) -> Tensor:
    """The mean squared difference of scores and rewards, [P]."""
    return ((scores_PK - rewards_PK) ** 2).mean(1)
