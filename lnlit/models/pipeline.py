"""Balances unequal layers over pipeline stages by inserting layers without weights.

Serving engines give each pipeline stage the same number of layers. In a heterogeneous model this would put most weights
on a few stages. The released Llama-3.1-Nemotron-Ultra pads each stage to the same number of layers instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise

from lnlit.errors import UserError
from lnlit.models.build import build_decoder, parameter_count
from lnlit.models.lineage import EMPTY, Lineage
from lnlit.specs import ModelSpec


def pad_for_pipeline(spec: ModelSpec, stages: int) -> Lineage:
    """Splits the layers into `stages` groups of the same number of layers, padded with empty layers at the start of
    each, with weights as even as the order of layers allows.

    Empty layers that the model already has are dropped first. The embedding counts towards the first stage and the head
    towards the last (also if it is tied, because that stage holds a copy). Raises `UserError` if there are more stages
    than layers with weights.
    """
    layers = [index for index, block in enumerate(spec.layers) if block != EMPTY]
    if not 1 <= stages <= len(layers):
        raise UserError(
            f"pipeline_stages: expected 1 to {len(layers)}, the number of layers with weights, got {stages}."
        )
    blocks = build_decoder(spec).layers
    sizes = [parameter_count(blocks[index]) for index in layers]
    sizes[0] += spec.vocab_size * spec.hidden_size
    sizes[-1] += spec.vocab_size * spec.hidden_size
    groups = split_evenly(sizes, stages)
    depth = max(map(len, groups))
    padded: list[tuple[int, ...]] = []
    for group in groups:
        padded += [()] * (depth - len(group)) + [(layers[place],) for place in group]
    return tuple(padded)


def split_evenly(sizes: Sequence[int], parts: int) -> list[range]:
    """Splits a sequence into `parts` consecutive non-empty ranges. The largest sum is minimal, and the sum of squares
    is minimal among such splits. Requires 1 <= parts <= len(sizes)."""
    total = [0, *accumulate(sizes)]

    @cache
    def best(start: int, parts: int) -> tuple[int, int, tuple[int, ...]]:
        """(largest sum, sum of squares, cuts) of the best split of `sizes[start:]`."""
        if parts == 1:
            size = total[-1] - total[start]
            return size, size**2, (len(sizes),)
        options = []
        for cut in range(start + 1, len(sizes) - parts + 2):
            size, (largest, squares, cuts) = total[cut] - total[start], best(cut, parts - 1)
            options.append((max(size, largest), size**2 + squares, (cut, *cuts)))
        return min(options)

    cuts = (0, *best(0, parts)[2])
    return [range(*cut) for cut in pairwise(cuts)]
