"""Policy-gradient losses over the tokens of sampled completions.

The tokens of all samples of a micro-batch lie in one row, and `sample_N` says whose each is. So there is no padding
that could leak into a mean, and packed and padded batches are the same thing here.

Shape suffixes: N tokens of completions, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lnlit.errors import UserError

RatioOf = Literal["token", "sequence", "sequence_mean"]
#: Log-ratios beyond this overflow or vanish in fp32; no clip or bound in use comes near.
LARGEST = 20.0


@dataclass(frozen=True)
class Clip:
    """How far one batch of samples may move the policy.

    Args:
        low: ratios count down to 1 - low where that would lower the loss further.
        high: ratios count up to 1 + high likewise (DAPO's "clip higher", arXiv 2503.14476, section 3.1, is 0.28).
        dual: where the advantage is negative, the loss is at most `dual` times its size (arXiv 1912.09729, equation 5);
            null for no such bound.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or not self.high >= 0:
            raise UserError(f"clip: expected low from 0 to 1 and high of 0 or more, got {self.low} and {self.high}")
        if self.dual is not None and not self.dual > 1 + self.high:
            raise UserError(f"clip.dual: expected a number above 1 + high = {1 + self.high}, got {self.dual}")


@dataclass(frozen=True)
class Correction:
    """For tokens that were drawn by another program than the one that learns from them: the ratio of the trainer's old
    probability to the engine's weighs each token's policy loss (truncated importance sampling).

    Args:
        low: smallest weight.
        high: largest weight.
        outside: what becomes of a weight outside: "truncate" moves it to the bound, "mask" drops the token (IcePop).
    """

    low: float = 0.5
    high: float = 2.0
    outside: Literal["truncate", "mask"] = "truncate"

    def __post_init__(self) -> None:
        if not 0 <= self.low < 1 < self.high:
            raise UserError(f"correction: expected 0 <= low < 1 < high, got {self.low} and {self.high}")

    def weights(self, old_N: Tensor, engine_N: Tensor) -> Tensor:
        """Without gradient. Tokens whose engine log-prob is not a number weigh 0."""
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
    """-min(ratio A, clip(ratio) A) for each token (PPO, arXiv 1707.06347, equation 7).

    `log_ratio_N` is log(policy / policy that drew the token), the only input with a gradient; it has none where it is
    beyond `LARGEST`.
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
    """log(policy / old policy) of each token, of its whole sample (sum over its tokens), or of its sample per token
    (GSPO, arXiv 2507.18071, equation 7). [N] in each case."""
    ratio_N = log_probs_N - old_N
    if of == "token":
        return ratio_N
    ratio_S = sums(ratio_N, sample_N, samples)
    if of == "sequence_mean":
        ratio_S = ratio_S / lengths(sample_N, samples).clamp(min=1)
    return ratio_S[sample_N]


class Reduction(NamedTuple):
    """`(weight * loss).sum() / count` is the mean; sum both over micro-batches and ranks before dividing."""

    weight_N: Tensor
    count: int


def token_mean(sample_N: Tensor, samples: int) -> Reduction:
    """Every token counts the same (DAPO, arXiv 2503.14476, section 3.3)."""
    return Reduction(torch.ones_like(sample_N, dtype=torch.float64), len(sample_N))


def sequence_mean(sample_N: Tensor, samples: int) -> Reduction:
    """Every sample that has tokens counts the same: mean over samples of means over tokens (the original GRPO)."""
    length_S = lengths(sample_N, samples)
    return Reduction(1 / length_S[sample_N].double(), int((length_S > 0).sum()))


def sequence_sum(sample_N: Tensor, samples: int) -> Reduction:
    """Mean over samples of sums over tokens (REINFORCE)."""
    return constant_length(sample_N, samples, 1)


def constant_length(sample_N: Tensor, samples: int, max_tokens: int) -> Reduction:
    """Mean over samples of sums over tokens / `max_tokens` (Dr. GRPO, arXiv 2503.20783, appendix A): no sample's tokens
    weigh less because it is long."""
    weight_N = torch.full_like(sample_N, 1 / max_tokens, dtype=torch.float64)
    return Reduction(weight_N, int((lengths(sample_N, samples) > 0).sum()))


def lengths(sample_N: Tensor, samples: int) -> Tensor:
    """Tokens of each sample, int64 [S]."""
    return torch.bincount(sample_N, minlength=samples)


def sums(values_N: Tensor, sample_N: Tensor, samples: int) -> Tensor:
    """Sum of each sample's values, [S]."""
    return values_N.new_zeros(samples).index_add(0, sample_N, values_N)
