"""A completion in its stages, as frozen records that gain fields.

`Drawn` is the engine's completion, `Judged` adds rewards, and `Sample` adds what training needs.
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
    """A completion of a prompt. `text` is the same as `RewardRequest.completion`."""

    prompt: Prompt
    rollout: Rollout
    text: str

    @property
    def truncated(self) -> bool:
        return self.rollout.finish_reason == "length"

    @property
    def is_finite(self) -> bool:
        """True if the engine's log-probs of all tokens are finite."""
        return all(map(math.isfinite, self.rollout.logprobs))

    @property
    def engine_log_probs(self) -> Tensor:
        return torch.tensor(self.rollout.logprobs, dtype=torch.float32)


@dataclass(frozen=True)
class Judged(Drawn):
    """A completion with the result of each reward in `rewards`, and their weighted sum in `reward`, NaN if one is
    missing."""

    rewards: Mapping[str, RewardResult] = field(default_factory=dict)
    reward: float = math.nan


@dataclass(frozen=True)
class Sample(Judged):
    """A completion to train on. `learned` is true if its tokens are learned from. `old_log_probs` and
    `reference_log_probs` are its log-probs under the weights that drew it and under the reference; None if they were
    not computed."""

    advantage: float = 0.0
    learned: bool = True
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None

    @property
    def teacher(self) -> str:
        """The name of the teacher that the prompt's row asks for, or ""."""
        return str(self.prompt.row.get("teacher") or "")

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors for a checkpoint. Only the tokens of the prompt and the name of its teacher are kept,
        because a row may hold other data."""
        state = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "prompt"}
        state["rollout"] = dict(vars(self.rollout))
        state["rewards"] = {name: (result.value, result.error) for name, result in self.rewards.items()}
        return {**state, "teacher": self.teacher}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Sample:
        """The sample that `state_dict` was called on."""
        rollout = Rollout(**state["rollout"])
        rewards = {name: RewardResult(*result) for name, result in state["rewards"].items()}
        own = {name: value for name, value in state.items() if name != "teacher"}
        prompt = Prompt((), tuple(rollout.prompt_ids), {"teacher": state.get("teacher", "")})
        return cls(prompt, **{**own, "rollout": rollout, "rewards": rewards})
