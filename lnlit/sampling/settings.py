"""The settings of sampling that every stage which samples shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lnlit.errors import UserError
from lnlit.interfaces import RolloutSampling


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Args:
        samples_per_prompt: Completions of each prompt.
        max_new_tokens: Length limit of a completion.
        temperature: Sampling temperature. 0 is greedy, which makes one completion of a prompt.
        top_p: Tokens are sampled from the smallest set with at least this probability. 1 is the whole vocabulary.
        seed: Other seeds, other completions.
    """

    samples_per_prompt: int = 8
    max_new_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples_per_prompt", "max_new_tokens"):
            if not getattr(self, name) > 0:
                raise UserError(f"sampling.{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"sampling.temperature: expected a number of 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p: expected a number above 0 and up to 1, got {self.top_p}")
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise UserError(
                f"sampling.temperature: 0 is greedy, so all {self.samples_per_prompt} completions of a prompt would be "
                "the same. Set samples_per_prompt to 1, or a temperature above 0."
            )

    def rollout(self, end_ids: Sequence[int]) -> RolloutSampling:
        """The settings as an engine takes them. `end_ids` are the tokens that end a completion."""
        return RolloutSampling(self.max_new_tokens, self.temperature, tuple(end_ids), self.top_p)
