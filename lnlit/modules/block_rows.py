"""The rows of all ranks in blockwise distillation. Each rank runs the parent on its own rows only, and has the
activations of one layer at a time of all. Ranks that divide a layer by tensor parallelism have the same rows.

Shape suffixes: R rows, B rows of a micro-batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnlit.interfaces import TokenBatch
from lnlit.models.decoder import Decoder
from lnlit.models.ranks import batches_of, my_place, stacked
from lnlit.modules.micro_batches import split_rows
from lnlit.search.walk import Step, parent_steps


@dataclass(frozen=True)
class Rows:
    """Micro-batches of all ranks, in the order of ranks, which of them this rank runs the parent on, and the group of
    ranks that run it on the others (None: all)."""

    batches: Sequence[TokenBatch]
    own: slice
    group: Any = None

    def steps(self, parent: Decoder, layers: Sequence[int]) -> Iterator[tuple[int, list[Step]]]:
        """(layer, the parent's step on each micro-batch) at `layers`. Collective: every rank must ask for all."""
        own = self.batches[self.own]
        around = None
        for layer, steps in parent_steps(parent, own, layers):
            if len(own) < len(self.batches):
                if around is None:  # which only depends on the tokens
                    dtype = steps[0].x_BTD.dtype
                    around = [parent.block_inputs(b.tokens, dtype, b.positions, b.lengths) for b in self.batches]
                streams = [self._of_all([getattr(s, name) for s in steps]) for name in ("x_BTD", "h_BTD", "out_BTD")]
                steps = [
                    Step(steps[0].block, x_BTD, h_BTD, out_BTD, attention.layer(layer), rope)
                    for x_BTD, h_BTD, out_BTD, (attention, rope) in zip(*streams, around, strict=True)
                ]
            yield layer, steps

    def _of_all(self, own: Sequence[Tensor]) -> Sequence[Tensor]:
        return stacked(torch.cat(list(own)), self.group).split([len(batch.tokens) for batch in self.batches])


def rows_of_all_ranks(batch: TokenBatch, tokens: int, device: torch.device, group: Any = None) -> Rows:
    """The rows of all ranks' batches in micro-batches of at most `tokens` tokens, or single rows. `group` has the
    data-parallel ranks, if others have the same rows. Collective."""
    everyone = [split_rows(theirs, tokens) for theirs in batches_of(group, batch, device)]
    count = len(everyone[0])  # of each, as all have equally many rows of equal length
    first = my_place(group)[0] * count
    return Rows([piece for pieces in everyone for piece in pieces], slice(first, first + count), group)


def rows_of_every_rank(batches: Sequence[TokenBatch]) -> Rows:
    """Micro-batches that all ranks have alike. Each runs the parent on all of them."""
    return Rows(batches, slice(None))
