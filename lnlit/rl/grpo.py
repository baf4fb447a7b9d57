"""Group relative policy optimisation (arXiv 2402.03300; Llama-Nemotron section 5) and its variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lnlit.rl.algorithm import Clipped, GroupRelative


@dataclass(frozen=True, kw_only=True)
class GRPO(GroupRelative, Clipped):
    """Makes samples more likely that are better than the prompt's others, and worse ones less, token by token.

    Settings turn it into related algorithms. Dr. GRPO (arXiv 2503.20783): `scale_rewards: none, reduction:
    constant_length`. DAPO (arXiv 2503.14476): `clip: {high: 0.28}`, and `rollout: {dynamic_sampling: 3}` in the data.
    GSPO (arXiv 2507.18071): `ratio: sequence_mean, reduction: sequence_mean, correction: null`, and a clip of about
    1e-4.

    Args:
        scale_rewards: The divisor of rewards above their prompt's mean: the standard deviation of the prompt's samples
            ("group", the paper of GRPO), that of the whole batch ("batch"), or 1 ("none", Dr. GRPO).
        ratio: The ratio of policy to old policy of each "token", or the geometric mean over the tokens of the sample,
            "sequence_mean" (GSPO).
        clip: The bounds of the ratio.
    """

    ratio: Literal["token", "sequence_mean"] = "token"
