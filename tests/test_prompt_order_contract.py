"""The contract of every registered order of prompts, and proof that it catches broken ones."""

from __future__ import annotations

import random

import pytest

from lnlit import registry
from lnlit.sampling.order import Uniform
from lnlit.testing.prompt_order_contract import check_prompt_order


@pytest.mark.parametrize("name", [e.name for e in registry.entries("prompt_order") if e.distribution == "lnlit"])
def test_prompt_order(name: str):
    check_prompt_order(lambda: registry.build("prompt_order", name))


class Repeats(Uniform):
    def take(self, count, rollout=None):
        return super().take(count, rollout)[:1] * count


class Random(Uniform):
    def take(self, count, rollout=None):
        return random.sample(range(self.prompts), count)


class Forgets(Uniform):
    def load_state_dict(self, state):
        pass


class TakesNone(Uniform):
    def start(self, rows, seed, rollouts):
        super().start(rows or [{}], seed, rollouts)


@pytest.mark.parametrize(
    ("order", "promise"),
    [
        (Repeats, "a prompt twice in rollout 0"),
        (Random, "the same seed, other prompts"),
        (Forgets, "resumed after 1 rollouts, other prompts"),
        (TakesNone, "starts without a prompt"),
    ],
)
def test_a_broken_order_is_caught(order, promise):
    with pytest.raises(AssertionError, match=promise):
        check_prompt_order(order)
