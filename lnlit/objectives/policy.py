"""Policy-gradient losses over the tokens of sampled completions.

The tokens of all samples of a micro-batch are in one row, and `sample_N` is the index of the sample that each belongs
to. So no padding can leak into a mean, and packed and padded batches are treated alike.

Shape suffixes: N completion tokens, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.schema import check

RatioOf = Literal["token", "sequence", "sequence_mean"]
#: Log-ratios beyond this overflow or vanish in fp32; no clip or bound in use comes near.
LARGEST = 20.0


@dataclass(frozen=True)
class Clip:
    """Bounds on how far one batch of samples may move the policy.

    Args:
        low: Ratios below 1 - low do not lower the loss further.
        high: Ratios above 1 + high do not lower the loss further (DAPO's "clip higher", arXiv 2503.14476, section 3.1,
            is 0.28).
        dual: For negative advantages, the loss is at most `dual` times their size (arXiv 1912.09729, equation 5); null
            for no such bound.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        check(self, "clip")
        if not 0 <= self.low <= 1 or not self.high >= 0:
            raise UserError(f"clip: expected low from 0 to 1 and high of 0 or more, got {self.low} and {self.high}")
        if self.dual is not None and not self.dual > 1 + self.high:
            raise UserError(f"clip.dual: expected a number above 1 + high = {1 + self.high}, got {self.dual}")


@dataclass(frozen=True)
class Correction:
    """The correction for tokens that were drawn by another program than the trainer: each token's policy loss is
    weighted by the ratio of the trainer's old probability to the engine's (truncated importance sampling).

    Args:
        low: Minimum weight.
        high: Maximum weight.
        outside: "truncate" moves a weight outside the bounds to the nearest bound, "mask" drops the token (IcePop).
    """

    low: float = 0.5
    high: float = 2.0
    outside: Literal["truncate", "mask"] = "truncate"

    def __post_init__(self) -> None:
        check(self, "correction")
        if not 0 <= self.low < 1 < self.high:
            raise UserError(f"correction: expected 0 <= low < 1 < high, got {self.low} and {self.high}")

    def weights(self, old_N: Tensor, engine_N: Tensor) -> Tensor:
        """The weight of each token, without gradient. A token whose engine log-prob is not finite has weight 0."""
        ratio_N = (old_N - engine_N).clamp(-LARGEST, LARGEST).exp().detach()
        if self.outside == "truncate":
            return torch.nan_to_num(ratio_N.clamp(self.low, self.high), nan=0.0)
        return torch.where((ratio_N >= self.low) & (ratio_N <= self.high), ratio_N, 0.0)


class TokenLoss(NamedTuple):
    """The loss of each token, and which tokens lost their gradient to a lower or an upper bound (bool). A bound that
    the algorithm does not have is None."""

    loss_N: Tensor
    clipped_low_N: Tensor | None = None
    clipped_high_N: Tensor | None = None


def clipped_loss(log_ratio_N: Tensor, advantages_N: Tensor, clip: Clip) -> TokenLoss:
    """The loss -min(ratio A, clip(ratio) A) of each token (PPO, arXiv 1707.06347, equation 7).

    `log_ratio_N` is log(policy / policy that drew the token), the only input with a gradient. It has none beyond
    `LARGEST`.
    """
    ratio_N = bounded_exp(log_ratio_N)
    loss_N = -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1 - clip.low, 1 + clip.high) * advantages_N)
    if clip.dual is not None:
        loss_N = torch.where(advantages_N < 0, torch.minimum(loss_N, -clip.dual * advantages_N), loss_N)
    clipped_low_N = (ratio_N < 1 - clip.low) & (advantages_N < 0)
    clipped_high_N = (ratio_N > 1 + clip.high) & (advantages_N > 0)
    return TokenLoss(loss_N, clipped_low_N, clipped_high_N)


def bounded_exp(log_ratio_N: Tensor) -> Tensor:
    """exp(log_ratio_N), bounded at exp(`LARGEST`), beyond which it has no gradient."""
    return log_ratio_N.clamp(max=LARGEST).exp()


def log_ratios(log_probs_N: Tensor, old_N: Tensor, sample_N: Tensor, samples: int, of: RatioOf) -> Tensor:
    """log(policy / old policy) of each token, of its whole sample (the sum over tokens), or the mean over the tokens of
    its sample (GSPO, arXiv 2507.18071, equation 7). [N] in each case."""
    ratio_N = log_probs_N - old_N
    if of == "token":
        return ratio_N
    ratio_S = sums(ratio_N, sample_N, samples)
    if of == "sequence_mean":
        ratio_S = ratio_S / lengths(sample_N, samples).clamp(min=1)
    return ratio_S[sample_N]


class Reduction(NamedTuple):
    """Weights and a count such that the mean is `(weight * loss).sum() / count`. Both are summed over micro-batches and
    ranks before dividing."""

    weight_N: Tensor
    count: int


def token_mean(sample_N: Tensor, samples: int) -> Reduction:
    """All tokens have equal weight (DAPO, arXiv 2503.14476, section 3.3)."""
    return Reduction(torch.ones_like(sample_N, dtype=torch.float64), len(sample_N))


def sequence_mean(sample_N: Tensor, samples: int) -> Reduction:
    """All samples with tokens have equal weight: the mean over samples of means over tokens (the original GRPO)."""
    length_S = lengths(sample_N, samples)
    return Reduction(1 / length_S[sample_N].double(), int((length_S > 0).sum()))


def sequence_sum(sample_N: Tensor, samples: int) -> Reduction:
    """The mean over samples of sums over tokens (REINFORCE)."""
    return constant_length(sample_N, samples, 1)


def constant_length(sample_N: Tensor, samples: int, max_tokens: int) -> Reduction:
    """The mean over samples of sums over tokens, divided by `max_tokens` (Dr. GRPO, arXiv 2503.20783, appendix A). The
    tokens of long samples do not weigh less."""
    weight_N = torch.full_like(sample_N, 1 / max_tokens, dtype=torch.float64)
    return Reduction(weight_N, int((lengths(sample_N, samples) > 0).sum()))


def lengths(sample_N: Tensor, samples: int) -> Tensor:
    """The number of tokens of each sample, int64 [S]."""
    return torch.bincount(sample_N, minlength=samples)


def sums(values_N: Tensor, sample_N: Tensor, samples: int) -> Tensor:
    """The sum of each sample's values, [S]."""
    return values_N.new_zeros(samples).index_add(0, sample_N, values_N)
