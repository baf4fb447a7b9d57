"""The vocabulary behind an output head, which tensor-parallel ranks may divide among them. No rank then ever holds the
logits of all tokens.

Shape suffixes: C positions, V this rank's part of the vocabulary, which is all of it unless ranks divide it, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Vocabulary:
    """This rank's part of the vocabulary. The methods return the results of the whole one, the same on every rank of
    the group, and each rank must call them.

    Attributes:
        first: The id of the part's first token.
        group: The process group that divides the vocabulary, or None if this rank has all of it.
    """

    first: int = 0
    group: Any = None

    def log_softmax(self, logits_CV: Tensor, dtype: torch.dtype) -> Tensor:
        """This part of the log-softmax over the whole vocabulary."""
        if self.group is None:
            return torch.log_softmax(logits_CV, dim=-1, dtype=dtype)
        logits_CV = logits_CV.to(dtype)
        largest_C1 = logits_CV.amax(-1, keepdim=True)
        distributed.all_reduce(largest_C1, distributed.ReduceOp.MAX, self.group)
        shifted_CV = logits_CV - largest_C1
        return shifted_CV.sub_(self.total(shifted_CV.exp().sum(-1, keepdim=True)).log_())

    def pick(self, values_CV: Tensor, tokens_C: Tensor) -> Tensor:
        """The value of one token at each position, [C]."""
        if self.group is None:
            return values_CV.gather(1, tokens_C[:, None])[:, 0]
        place_C, is_here_C = self._here(tokens_C, values_CV.shape[1])
        return self.total(values_CV.gather(1, place_C[:, None])[:, 0].masked_fill(~is_here_C, 0.0))

    def add(self, values_CV: Tensor, tokens_C: Tensor, shares_C: Tensor) -> None:
        """Adds a share to the value of one token at each position, in place."""
        if self.group is not None:
            tokens_C, is_here_C = self._here(tokens_C, values_CV.shape[1])
            shares_C = shares_C.masked_fill(~is_here_C, 0.0)
        values_CV.scatter_add_(1, tokens_C[:, None], shares_C[:, None])

    def total(self, partial: Tensor) -> Tensor:
        """The sum over all parts, in place."""
        if self.group is not None and partial.numel():
            distributed.all_reduce(partial, group=self.group)
        return partial

    def _here(self, tokens_C: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(the tokens' places in this part, 0 for those of others; which of them are in it)."""
        place_C = tokens_C - self.first
        is_here_C = (place_C >= 0) & (place_C < size)
        return place_C.where(is_here_C, 0), is_here_C


WHOLE = Vocabulary()


def own_part(weight_VD: Tensor) -> tuple[Tensor, Vocabulary]:
    """(this rank's rows of a head's weight, their part of the vocabulary). A `DTensor` is divided evenly by rows. The
    gradient of the rows becomes the weight's."""
    if not isinstance(weight_VD, DTensor):
        return weight_VD, WHOLE
    rows_VD, mesh = weight_VD.to_local(grad_placements=weight_VD.placements), weight_VD.device_mesh
    return rows_VD, Vocabulary(mesh.get_local_rank() * len(rows_VD), mesh.get_group())
