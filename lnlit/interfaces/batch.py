"""The batches that a data module hands to a training method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Label of a position that carries no loss (the value torch's cross-entropy ignores).
IGNORE = -100


@dataclass
class TokenBatch:
    """Token sequences in B rows of T positions. All tensors are int64 [B, T] unless stated otherwise.

    `labels[b, t]` is the token to predict at position t, so labels are already shifted, and the last token of one
    document never predicts the first of the next. A label of `IGNORE` carries no loss. `positions` restart at 0 in each
    document. `lengths` lists the documents' lengths row by row; padding is a document of its own without labels, so
    `sum(lengths) == B * T`.

    Documents that begin with the same tokens may share them. Then `gather_index` (int64 [sum(lengths)]) is the gather
    index of each document's tokens among the B * T of the batch, document by document, and `positions` continue after
    the shared prefix.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    lengths: list[int]
    gather_index: Tensor | None = None


@dataclass
class PolicyBatch:
    """Sampled completions and what a policy learns from each of their tokens.

    `tokens.labels` are the completions' tokens. N of them have a label, and the tensors of shape [N] follow these row
    by row. `sample_N` is the index of the sample that each token belongs to, from 0 to `samples` - 1. `old_N` are the
    trainer's log-probs under the weights that drew the completions; None if those are still the weights of this step.
    `engine_N` are the log-probs that the engine reported; None if they need no correction. `reference_N` are the
    reference model's log-probs; None without one. `rewards_S` are the samples' rewards, with the `samples_per_prompt`
    of each prompt side by side, and NaN for a sample that is not learned from. `teacher_S` are the names of the
    teachers that the samples' rows ask for, "" where they name none. `metrics` describe the rollout that
    begins with this batch.
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
    teacher_S: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class PreferenceBatch:
    """K completions of each of P prompts, and their rewards.

    `tokens.labels` are the completions' tokens; N of them have a label. `sample_N` is the index of the sample that each
    token belongs to: completion k of prompt p is sample p * K + k. `reference_PK` are the reference model's log-probs
    of whole completions, NaN where unknown, or None if they were not computed. `reference_temperature_P` is the
    temperature of log-probs that were read from the rows, otherwise NaN. `metrics` describe the rollout that begins
    with this batch.
    """

    tokens: TokenBatch
    sample_N: Tensor
    rewards_PK: Tensor
    reference_PK: Tensor | None = None
    reference_temperature_P: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
