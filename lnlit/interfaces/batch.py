"""What a data module hands to a training method."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    lengths: list[int]
