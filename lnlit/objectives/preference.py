"""Learning from rewards of several completions of one prompt, without sampling from the policy that learns.

Reward-aware preference optimisation (RPO; Llama-Nemotron section 6, arXiv 2502.00203) moves the policy's implicit
reward, beta * s with s = log(policy / reference) of a completion, towards the given one, eta * r. Only differences
within a group matter. With K = 2, p = sigmoid(beta (s_1 - s_2)) and q = sigmoid(eta (r_1 - r_2)):

    backward    KL(q || p)                                  d / d s_1 = beta (p - q)
    forward     KL(p || q)                                              beta p (1 - p) (z - a)
    squared     (z - a)^2                                               2 beta (z - a)
    dpo         -log p of the better one (eta -> infinity)              beta (p - 1), or of a tie beta (p - 1/2)

with z = beta (s_1 - s_2) and a = eta (r_1 - r_2). All gradients carry the factor beta. At the paper's 1e-5 they would
be lost in AdamW's epsilon, so every loss here is divided by beta: that changes no optimum, only the scale.

Shape suffixes: P prompts, K completions of each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def backward(scores_PK: Tensor, rewards_PK: Tensor, beta: float, eta: float) -> Tensor:
    """KL(softmax(eta r) || softmax(beta s)) / beta, [P]."""
    target_PK, policy_PK = log_softmax(eta * rewards_PK, -1), log_softmax(beta * scores_PK, -1)
    return (target_PK.exp() * (target_PK - policy_PK)).sum(-1) / beta


def forward(scores_PK: Tensor, rewards_PK: Tensor, beta: float, eta: float) -> Tensor:
    """KL(softmax(beta s) || softmax(eta r)) / beta, [P]."""
    target_PK, policy_PK = log_softmax(eta * rewards_PK, -1), log_softmax(beta * scores_PK, -1)
    return (policy_PK.exp() * (policy_PK - target_PK)).sum(-1) / beta


def squared(scores_PK: Tensor, rewards_PK: Tensor, beta: float, eta: float) -> Tensor:
    """Mean over pairs of (beta (s_i - s_j) - eta (r_i - r_j))^2, / beta, [P].

    At the reference its gradient is that of REINFORCE with a group-mean baseline, up to a factor.
    """
    distance_PK = beta * scores_PK - eta * rewards_PK
    # the mean over pairs of squared differences is twice the sample variance
    spread_PK = distance_PK - distance_PK.mean(-1, keepdim=True)
    return 2 * spread_PK.square().sum(-1) / (distance_PK.shape[-1] - 1) / beta


def dpo(scores_PK: Tensor, rewards_PK: Tensor, beta: float, eta: float) -> Tensor:
    """-log softmax(beta s) of the completion with the highest reward, / beta, [P]: `backward` for eta -> infinity, so
    that equally good ones have equal parts (DPO, arXiv 2305.18290, equation 7). `eta` is not used."""
    best_PK = (rewards_PK == rewards_PK.amax(-1, keepdim=True)).to(scores_PK.dtype)
    target_PK = best_PK / best_PK.sum(-1, keepdim=True)
    return -(target_PK * log_softmax(beta * scores_PK, -1) + torch.special.entr(target_PK)).sum(-1) / beta


LOSSES = {"backward": backward, "forward": forward, "squared": squared, "dpo": dpo}
