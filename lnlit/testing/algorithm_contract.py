"""The contract of algorithms, as a function for a test to call.

    from lnlit.testing.algorithm_contract import check_algorithm

    def test_contract():
        check_algorithm(MyAlgorithm())

Raises AssertionError naming the algorithm and the broken promise.

Shape suffixes: P prompts, G samples per prompt, R reward functions, N completion tokens, S samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lnlit.interfaces import Algorithm, Needs, PolicyBatch, RewardTable, TokenBatch
from lnlit.testing.promises import expect

_PROMPTS, _SAMPLES, _MAX_TOKENS = 4, 3, 6
_REWARDS = [[0.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.25, 0.25, 0.25], [0.0, 0.0, 1.0]]
_LENGTHS = [[3, 1, 6], [2, 2, 4], [5, 1, 1], [1, 6, 2]]


def check_algorithm(algorithm: Algorithm) -> None:
    """Checks an algorithm on rewards from 0 to 1 of three samples for each of four prompts."""
    label = type(algorithm).__name__
    expect(isinstance(algorithm.needs, Needs), label, "needs is a Needs")
    expect(algorithm.needs.samples_per_prompt >= 1, label, "needs at least one sample of a prompt")
    settings = algorithm.sample_settings()
    expect(json.loads(json.dumps(settings)) == settings, label, "sample_settings() are plain data")
    advantages_PG = _check_advantages(algorithm, label)
    _check_loss(algorithm, advantages_PG, label)


def _check_advantages(algorithm: Algorithm, label: str) -> Tensor:
    rewards_PG = torch.tensor(_REWARDS, dtype=torch.float64)
    found_PG = algorithm.advantages(_table(rewards_PG))
    expect(found_PG.shape == rewards_PG.shape, label, f"advantages are [P, G], got {tuple(found_PG.shape)}")
    expect(bool(found_PG.isfinite().all()), label, "advantages are finite")
    if not algorithm.needs.rewards:
        other_PG = algorithm.advantages(_table(1 - rewards_PG))
        expect(torch.equal(other_PG, found_PG), label, "rewards that it does not need make no difference")
        return found_PG
    above_PGG = rewards_PG[:, :, None] - rewards_PG[:, None, :]
    gained_PGG = found_PG[:, :, None] - found_PG[:, None, :]
    expect(bool((gained_PGG[above_PGG > 0] > 0).all()), label, "the better of two samples has the higher advantage")
    order = torch.tensor([2, 0, 1])
    moved_PG = algorithm.advantages(_table(rewards_PG[:, order], order))
    expect(torch.allclose(moved_PG, found_PG[:, order]), label, "the order of a prompt's samples makes no difference")
    unknown_PG = rewards_PG.clone()
    unknown_PG[0, 0] = unknown_PG[1] = torch.nan
    found = algorithm.advantages(_table(unknown_PG))
    expect(bool((found[unknown_PG.isnan()] == 0).all()), label, "a sample without a reward has the advantage 0")
    expect(bool(found.isfinite().all()), label, "a reward that is missing leaves the others' advantages finite")
    same_PG = algorithm.advantages(_table(torch.ones_like(rewards_PG)))
    expect(bool((same_PG.abs() < 1e-6).all()), label, "equal rewards everywhere teach nothing")
    return found_PG


def _check_loss(algorithm: Algorithm, advantages_PG: Tensor, label: str) -> None:
    whole, log_probs_N = _batch(advantages_PG, range(_PROMPTS))
    total, count, observed = algorithm.loss(log_probs_N, whole)
    expect(total.dim() == 0 and bool(total.isfinite()) and count > 0, label, "a loss is one finite sum, and a count")
    (gradient_N,) = torch.autograd.grad(total, log_probs_N)
    expect(bool(gradient_N.isfinite().all()), label, "the gradient is finite")
    best_N = whole.sample_N == int(torch.tensor(_REWARDS)[3].argmax()) + 3 * _SAMPLES
    if algorithm.needs.rewards:
        expect(bool((gradient_N[best_N] < 0).all()), label, "a step makes the best sample more likely")
    else:
        assert whole.reference_N is not None
        liked = replace(whole, reference_N=whole.reference_N + best_N)
        (gradient_N,) = torch.autograd.grad(algorithm.loss(log_probs_N, liked).total, log_probs_N)
        expect(bool((gradient_N[best_N] < 0).all()), label, "a step makes more likely what the reference prefers")
    for name, (value, over) in observed.items():
        expect(not torch.as_tensor(value).requires_grad or value.dim() == 0, label, f"{name!r} is one sum")
        expect(float(over) >= 0, label, f"the count of {name!r} is no number of things")
    parts = [_batch(advantages_PG, prompts) for prompts in (range(1), range(1, _PROMPTS))]
    losses = [algorithm.loss(log_probs_N, batch) for batch, log_probs_N in parts]
    expect(sum(loss.count for loss in losses) == count, label, "counts of micro-batches add up to the step's")
    together = torch.stack([loss.total for loss in losses]).sum()
    expect(torch.allclose(together, total), label, "losses of micro-batches add up to the step's")
    nothing, log_probs_N = _batch(torch.full_like(advantages_PG, torch.nan), range(_PROMPTS))
    total, count, _ = algorithm.loss(log_probs_N, nothing)
    expect(count == 0 and float(total.detach()) == 0, label, "a micro-batch of nothing to learn from has the loss 0")
    expect(total.requires_grad, label, "a micro-batch of nothing has a gradient as well: other ranks wait for it")


def _table(rewards_PG: Tensor, order: Tensor | None = None) -> RewardTable:
    lengths_PG = torch.tensor(_LENGTHS)[:, slice(None) if order is None else order]
    zeros_PG = torch.zeros_like(rewards_PG)
    return RewardTable(rewards_PG[..., None], torch.ones(1, dtype=torch.float64), lengths_PG, zeros_PG)


def _batch(advantages_PG: Tensor, prompts: Sequence[int]) -> tuple[PolicyBatch, Tensor]:
    """(on-policy samples of some prompts, the policy's log-probs). Samples with NaN advantages have no tokens."""
    chosen_PG = advantages_PG[list(prompts)]
    known = bool(chosen_PG.isfinite().all())
    lengths_S = torch.tensor(_LENGTHS)[list(prompts)].flatten() * known
    sample_N = torch.repeat_interleave(torch.arange(len(lengths_S)), lengths_S)
    rewards_S = torch.tensor(_REWARDS, dtype=torch.float64)[list(prompts)].flatten()
    at = torch.arange(len(sample_N), dtype=torch.float64)
    log_probs_N = (-1 - 0.1 * (at % 5)).requires_grad_()
    old_N = log_probs_N.detach().clone()
    row_1N = torch.zeros(1, max(len(sample_N), 1), dtype=torch.int64)
    batch = PolicyBatch(
        TokenBatch(row_1N, row_1N, row_1N, [row_1N.shape[1]]),
        sample_N,
        len(lengths_S),
        chosen_PG.nan_to_num().flatten().double()[sample_N],
        old_N,
        old_N.clone(),
        old_N.clone(),
        _MAX_TOKENS,
        torch.where(torch.tensor(known), rewards_S, torch.nan),
        _SAMPLES,
    )
    return batch, log_probs_N
