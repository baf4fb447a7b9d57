"""What a data module hands to a training method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Label of a position that carries no loss (the value torch's cross-entropy ignores).
IGNORE = -100


@dataclass
class TokenBatch:
    """Token sequences in B rows of T positions. All tensors are int64 [B, T].

    `labels[b, t]` is the token to predict *at* position t (already shifted; `IGNORE`: no loss), so the last token of
    one document never predicts the first of the next. `positions` restart at 0 in each document. `lengths` lists the
    documents row by row; padding is a document of its own without labels, so `sum(lengths) == B * T`.

    Documents may begin with the same tokens and share them: then `places` (int64 [sum(lengths)]) says where among the
    B * T each document's tokens are, document by document, and `positions` count on from what is shared.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    lengths: list[int]
    places: Tensor | None = None


@dataclass
class PolicyBatch:
    """Sampled completions and what a policy learns from each of their tokens.

    `tokens.labels` are the completions' tokens; N of them have a label, and the tensors [N] follow these, row by row.
    `sample_N` says whose each token is, from 0 to `samples` - 1. `old_N` are the trainer's log-probs under the weights
    that the completions were sampled with, None where those are still the weights of this step; `engine_N` those that
    the engine reported, None where they need no correction; `reference_N` those of the reference, None without one.
    `rewards_S` are the samples' rewards, `samples_per_prompt` of each prompt in a row, NaN for a sample that is not
    learned from. `metrics` describe the rollout that begins with this batch.
    """

    tokens: TokenBatch
    sample_N: Tensor
    samples: int
    advantages_N: Tensor
    old_N: Tensor | None = None
    engine_N: Tensor | None = None
    reference_N: Tensor | None = None
    max_new_tokens: int = 1
    rewards_S: Tensor | None = None
    samples_per_prompt: int = 1
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class PreferenceBatch:
    """K completions of each of P prompts, and their rewards.

    `tokens.labels` are the completions' tokens; N of them have a label. `sample_N` says whose each is: completion k of
    prompt p is sample p * K + k. `reference_PK` are the reference's log-probs of whole completions, NaN where nobody
    knows them, None where nobody was asked; `reference_temperature_P` is theirs where rows brought them, otherwise NaN.
    `metrics` describe the rollout that begins with this batch.
    """

    tokens: TokenBatch
    sample_N: Tensor
    rewards_PK: Tensor
    reference_PK: Tensor | None = None
    reference_temperature_P: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
