"""A completion and what becomes of it: a record that is never changed, and gains fields from stage to stage.

`Drawn` is what an engine said, `Judged` what rewards made of it, `Sample` what is learned from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from lnlit.interfaces import RewardResult, Rollout
from lnlit.sampling.prompt import Prompt


@dataclass(frozen=True)
class Drawn:
    """A completion of a prompt. `text` is what `RewardRequest.completion` says."""

    prompt: Prompt
    rollout: Rollout
    text: str

    @property
    def truncated(self) -> bool:
        return self.rollout.finish_reason == "length"

    @property
    def is_finite(self) -> bool:
        """Whether the engine knew how likely each token was."""
        return all(map(math.isfinite, self.rollout.logprobs))

    @property
    def engine_log_probs(self) -> Tensor:
        return torch.tensor(self.rollout.logprobs, dtype=torch.float32)


@dataclass(frozen=True)
class Judged(Drawn):
    """`rewards` are what each reward said, `reward` their weighted sum, NaN where one of them could not be given."""

    rewards: Mapping[str, RewardResult] = field(default_factory=dict)
    reward: float = math.nan


@dataclass(frozen=True)
class Sample(Judged):
    """`learned` says whether the tokens are learned from. `old_log_probs` and `reference_log_probs` are theirs under
    the weights that drew them and under the reference's, None where nobody asked.
    """

    advantage: float = 0.0
    learned: bool = True
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors, for a checkpoint. Of the prompt its tokens: a row may hold what is not plain."""
        state = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "prompt"}
        state["rollout"] = dict(vars(self.rollout))
        state["rewards"] = {name: (result.value, result.error) for name, result in self.rewards.items()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Sample:
        """What `state_dict` gave."""
        rollout = Rollout(**state["rollout"])
        rewards = {name: RewardResult(*result) for name, result in state["rewards"].items()}
        prompt = Prompt((), tuple(rollout.prompt_ids), {})
        return cls(prompt, **{**state, "rollout": rollout, "rewards": rewards})
