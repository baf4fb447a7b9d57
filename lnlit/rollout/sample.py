"""A completion and what became of it, and what a rollout's samples say together."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lnlit.interfaces import RewardResult, Rollout
from lnlit.objectives.advantage import without_spread
from lnlit.thinking import mode


@dataclass(frozen=True)
class Prompt:
    """A conversation to answer, and the row of data it came from."""

    messages: Sequence[Mapping[str, Any]]
    token_ids: tuple[int, ...]
    row: Mapping[str, Any]


def digest(prompts: Sequence[Prompt]) -> str:
    """A fingerprint of conversations and of what the rewards may read, in their order. What JSON has no form for, such
    as a date, counts as it is printed."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(json.dumps([list(prompt.messages), prompt.row], sort_keys=True, default=str).encode())
    return found.hexdigest()


@dataclass
class Sample:
    """`text` is what `RewardRequest.completion` says. `reward` is NaN where none could be given; `learned` says whether
    the tokens are learned from. `own` and `reference` are their log-probs under the weights that drew them and under
    the reference's, None where nobody asked.
    """

    prompt: Prompt
    rollout: Rollout
    text: str
    rewards: Mapping[str, RewardResult] = field(default_factory=dict)
    reward: float = math.nan
    advantage: float = 0.0
    learned: bool = True
    own: Tensor | None = None
    reference: Tensor | None = None

    @property
    def truncated(self) -> bool:
        return self.rollout.finish_reason == "length"

    @property
    def is_finite(self) -> bool:
        """Whether the engine knew how likely each token was."""
        return all(map(math.isfinite, self.rollout.logprobs))

    @property
    def engine(self) -> Tensor:
        """The engine's log-probs."""
        return torch.tensor(self.rollout.logprobs, dtype=torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors, for a checkpoint. Of the prompt its tokens: a row may hold what is not plain."""
        state = {name: getattr(self, name) for name in _PLAIN}
        state["rollout"] = {name: getattr(self.rollout, name) for name in Rollout.__dataclass_fields__}
        state["rewards"] = {name: (result.value, result.error) for name, result in self.rewards.items()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Sample:
        """What `state_dict` gave."""
        rollout = Rollout(**state["rollout"])
        rewards = {name: RewardResult(*result) for name, result in state["rewards"].items()}
        plain = {name: state[name] for name in _PLAIN}
        return cls(Prompt((), tuple(rollout.prompt_ids), {}), rollout, rewards=rewards, **plain)


_PLAIN = ("text", "reward", "advantage", "learned", "own", "reference")


def request_seed(run: int, rollout: int, prompt: int, sample: int) -> int:
    """Of one completion of a run: the same after a restart and whatever it is batched with, different for all others.

    63 bits, as engines take signed numbers.
    """
    name = f"{run}/{rollout}/{prompt}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def micro_batches(
    samples: Sequence[Sample], samples_per_prompt: int, parts: int, whole_prompts: bool
) -> list[list[int]]:
    """Indices of samples in `parts` lists that cost about the same.

    The samples of a prompt share its tokens and so stay together, but are dealt out to several parts where there are
    fewer prompts than parts and nothing asks for `whole_prompts`.
    """
    together = samples_per_prompt
    while not whole_prompts and len(samples) < together * parts and together > 1:
        together = next(size for size in range(together - 1, 0, -1) if samples_per_prompt % size == 0)
    units = [samples[at : at + together] for at in range(0, len(samples), together)]
    costs = [len(unit[0].rollout.prompt_ids) + sum(len(s.rollout.token_ids) for s in unit) for unit in units]
    return [[at * together + more for at in part for more in range(together)] for part in balanced(costs, parts)]


def balanced(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of `sizes` in `parts` lists of about the same sum: longest first, each to the part with the least.

    Within a part the indices ascend, so that neighbours stay neighbours.
    """
    heap = [(0, part) for part in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        total, part = heapq.heappop(heap)
        found[part].append(index)
        heapq.heappush(heap, (total + sizes[index], part))
    return [sorted(part) for part in found]


def rewards_table(samples: Sequence[Sample], samples_per_prompt: int) -> Tensor:
    """[P, G], NaN where a sample has none."""
    return torch.tensor([sample.reward for sample in samples], dtype=torch.float64).view(-1, samples_per_prompt)


def penalised_table(samples: Sequence[Sample], samples_per_prompt: int, penalty: Callable[[Sample], float]) -> Tensor:
    """[P, G]: rewards less what each sample is charged."""
    charged = torch.tensor([penalty(sample) for sample in samples], dtype=torch.float64)
    return rewards_table(samples, samples_per_prompt) - charged.view(-1, samples_per_prompt)


def describe(samples: Sequence[Sample], samples_per_prompt: int) -> dict[str, float]:
    """A rollout in numbers, by the names that TRL gives them."""
    table_PG = rewards_table(samples, samples_per_prompt)
    lengths = [len(sample.rollout.token_ids) for sample in samples]
    ended = [length for length, sample in zip(lengths, samples, strict=True) if not sample.truncated]
    known = table_PG[~table_PG.isnan()]
    numbers = {
        "reward": _mean(known.tolist()),
        "reward_std": known.std().item() if len(known) > 1 else 0.0,
        "frac_reward_zero_std": without_spread(table_PG).double().mean().item(),
        "completions/mean_length": fmean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/mean_terminated_length": _mean(ended),
        "completions/clipped_ratio": 1 - len(ended) / len(samples),
        "rewards/unscorable": sum(math.isnan(sample.reward) for sample in samples) / len(samples),
    }
    for name in samples[0].rewards:
        values = [value for sample in samples if (value := sample.rewards[name].value) is not None]
        numbers[f"rewards/{name}/mean"] = _mean(values)
        numbers[f"rewards/{name}/std"] = torch.tensor(values).double().std().item() if len(values) > 1 else 0.0
    return numbers | _by_kind(samples)


def _by_kind(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean rewards of each kind of prompt: by thinking mode, task and pass rate, where they differ."""
    kinds: dict[str, dict[str, list[Sample]]] = {}
    for sample in samples:
        for kind, value in _kinds(sample.prompt).items():
            kinds.setdefault(kind, {}).setdefault(value, []).append(sample)
    numbers = {}
    for kind, values in kinds.items():
        for value, members in values.items() if len(values) > 1 else ():
            label = f"{kind}_{value}"
            numbers[f"reward/{label}"] = _mean([s.reward for s in members if not math.isnan(s.reward)])
            for name in members[0].rewards:
                known = [given for s in members if (given := s.rewards[name].value) is not None]
                numbers[f"rewards/{name}/mean/{label}"] = _mean(known)
    return numbers


def _kinds(prompt: Prompt) -> dict[str, str]:
    found = {"thinking": mode(prompt.messages), "task": prompt.row.get("task")}
    if isinstance(rate := prompt.row.get("pass_rate"), (int, float)):
        quarter = min(int(4 * rate), 3) / 4
        found["pass_rate"] = f"{quarter:.2f}-{quarter + 0.25:.2f}"
    return {kind: str(value) for kind, value in found.items() if value is not None}


def _mean(values: Sequence[float]) -> float:
    """NaN of nothing, which TensorBoard leaves out."""
    return fmean(values) if values else math.nan
