"""Samples made by hand, and a folder of them."""

from __future__ import annotations

import math

from lnlit.interfaces import RewardResult, Rollout
from lnlit.rl.metrics import describe
from lnlit.sampling.history import Entry, History
from lnlit.sampling.prompt import Prompt
from lnlit.sampling.sample import Sample


def sample(text: str, reward: float, asked: Prompt | str = "say it", seed: int = 0, **parts: float | None) -> Sample:
    if isinstance(asked, str):
        asked = prompt(asked)
    rewards = {name: RewardResult(value, "too hard" if value is None else None) for name, value in parts.items()}
    drawn = Rollout(asked.token_ids, (5, 6), (-0.1, -1e-9), "stop", 3, 2**62 + seed)
    return Sample(asked, drawn, text, rewards, reward, 0.0 if math.isnan(reward) else reward / 3)


def prompt(text: str, **row) -> Prompt:
    messages = [{"role": "system", "content": "detailed thinking on"}, {"role": "user", "content": text}]
    return Prompt(messages, (1, 2, 3), {"messages": messages, **row})


def add(history: History, stage, step: int, samples, size: int = 2, **seconds) -> None:
    history.add_samples(stage, step, samples, keep=100)
    history.add(Entry(stage, step, step, len(samples), describe(samples, size), seconds))
