"""The divergence of a policy from a reference, estimated from the tokens it sampled.

With d = log pi(token) - log ref(token), three estimators of KL(pi || ref) are in use (Schulman 2020): k1 = d,
k2 = d^2 / 2, k3 = exp(-d) - 1 + d. All are right about the value, k1 and k3 without bias. As parts of a loss they
have different gradients, since the tokens too depend on the policy:

    estimator   in the loss, as it is   in the loss, times pi / sg(pi)   in the reward
    k1          0                       KL(pi || ref)                    KL(pi || ref)
    k2          KL(pi || ref)           of neither                       of neither
    k3          KL(ref || pi)           KL(pi || ref)                    of neither

The factor pi / sg(pi) is 1 and brings the score function into the gradient (the "score term").

Shape suffixes: N tokens of completions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.objectives.policy import LARGEST, bounded_exp
from lnlit.schema import check

Estimator = Literal["k1", "k2", "k3"]
Place = Literal["loss", "score", "reward"]

_REFUSED = {
    ("k1", "loss"): "its gradient is zero on average: nothing would hold the policy at the reference",
    ("k2", "score"): "its gradient is that of no divergence",
    ("k2", "reward"): "its gradient is that of no divergence",
    ("k3", "reward"): "its gradient is that of no divergence",
}
#: The largest weight with which fp32 can hold the sum over a million tokens that are 100 nats from the reference.
_LARGEST_WEIGHT = 1e12
_ALLOWED = "k2 or k3 in the loss, k1 or k3 with place: score, k1 with place: reward"


def k1(log_ratio_N: Tensor) -> Tensor:
    return log_ratio_N


def k2(log_ratio_N: Tensor) -> Tensor:
    return log_ratio_N.square() / 2


def k3(log_ratio_N: Tensor) -> Tensor:
    """The estimator k3: never negative, unbiased, and of low variance while the policies are close.

    Where exp would overflow it continues along its tangent, so that the gradient still leads back to the reference.
    """
    beyond_N = torch.relu(-log_ratio_N - LARGEST)
    return torch.expm1((-log_ratio_N).clamp(max=LARGEST)) + math.exp(LARGEST) * beyond_N + log_ratio_N


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True)
class KL:
    """The penalty that keeps a policy near its reference.

    Args:
        weight: Weight of the divergence, in reward per nat (beta).
        estimator: The estimator k1, k2 or k3.
        place: "loss" adds the estimate to the loss. "score" adds it times the ratio pi / pi_old, whose gradient is that
            of KL(policy || reference). "reward" subtracts the sum over a sample from its reward.

    Raises `UserError` for combinations with a wrong gradient.
    """

    weight: float = 0.0
    estimator: Estimator = "k3"
    place: Place = "score"

    def __post_init__(self) -> None:
        check(self, "kl")
        if not (0 <= self.weight < float("inf")):
            raise UserError(f"kl.weight: expected a number of 0 or more, got {self.weight}")
        if self.weight > _LARGEST_WEIGHT:
            raise UserError(
                f"kl.weight: {self.weight:g} times a divergence is beyond fp32's largest number, so the loss would be "
                f"infinite; allowed: up to {_LARGEST_WEIGHT:g}. Usual weights are below 1."
            )
        if reason := _REFUSED.get((self.estimator, self.place)):
            raise UserError(f"kl: {self.estimator} with place: {self.place} is refused, as {reason}. Use {_ALLOWED}.")

    @property
    def in_loss(self) -> bool:
        return self.weight > 0 and self.place != "reward"

    @property
    def in_reward(self) -> bool:
        return self.weight > 0 and self.place == "reward"

    def penalty(self, log_probs_N: Tensor, reference_N: Tensor, old_N: Tensor) -> Tensor:
        """The term to add to each token's loss, including `weight`. `old_N` are the log-probs under the weights that
        drew the tokens; only `log_probs_N` gets a gradient."""
        estimate_N = ESTIMATORS[self.estimator](log_probs_N - reference_N)
        if self.place == "score":
            estimate_N = estimate_N * bounded_exp(log_probs_N - old_N)
        return self.weight * estimate_N
