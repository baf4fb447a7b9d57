"""Metrics of a rollout's samples.

Shape suffixes: P prompts, G samples per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from lnlit.objectives.advantage import without_spread
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import Judged
from lnlit.thinking import mode


def rewards_table(samples: Sequence[Judged], samples_per_prompt: int) -> Tensor:
    """The rewards of all samples, [P, G]; NaN for a sample without one."""
    return torch.tensor([sample.reward for sample in samples], dtype=torch.float64).view(-1, samples_per_prompt)


def describe(samples: Sequence[Judged], samples_per_prompt: int) -> dict[str, float]:
    """The metrics of a rollout, by the names that TRL uses."""
    table_PG = rewards_table(samples, samples_per_prompt)
    lengths = [len(sample.rollout.token_ids) for sample in samples]
    ended = [length for length, sample in zip(lengths, samples, strict=True) if not sample.truncated]
    known = table_PG[~table_PG.isnan()]
    numbers = {
        "completions/mean_length": fmean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/mean_terminated_length": _mean(ended),
        "completions/clipped_ratio": 1 - len(ended) / len(samples),
    }
    if samples[0].rewards:
        numbers |= {
            "reward": _mean(known.tolist()),
            "reward_std": known.std().item() if len(known) > 1 else 0.0,
            "frac_reward_zero_std": without_spread(table_PG).double().mean().item(),
            "rewards/unscorable": sum(math.isnan(sample.reward) for sample in samples) / len(samples),
        }
    for name in samples[0].rewards:
        values = [value for sample in samples if (value := sample.rewards[name].value) is not None]
        numbers[f"rewards/{name}/mean"] = _mean(values)
        numbers[f"rewards/{name}/std"] = torch.tensor(values).double().std().item() if len(values) > 1 else 0.0
    return numbers | _by_kind(samples)


def _by_kind(samples: Sequence[Judged]) -> dict[str, float]:
    """Mean rewards by kind of prompt: by thinking mode, task and pass rate, if they differ."""
    kinds: dict[str, dict[str, list[Judged]]] = {}
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
    """The mean, or NaN for no values, which TensorBoard leaves out."""
    return fmean(values) if values else math.nan
