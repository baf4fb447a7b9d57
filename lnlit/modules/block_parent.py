"""The parent in blockwise distillation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from lnlit.checkpoint.by_layer import by_layer
from lnlit.checkpoint.formats import open_checkpoint, read_spec, resolve
from lnlit.search.trainee import Place


def parent_weights(model: str, places: Sequence[Place]) -> Iterator[tuple[Place, Mapping[str, Tensor]]]:
    """Each of the sorted places with the parent's weights of its layer, one layer in memory at a time.

    In the checkpoint's dtype: the parent that runs may be rounded. Nothing is read, and weights are {}, unless a pair
    is among the places: other candidates do not start from the parent.
    """
    if not any(place.slot == "pairs" for place in places):
        yield from ((place, {}) for place in places)
        return
    source = resolve(model)
    groups = by_layer(read_spec(model), open_checkpoint(source).weights(source))
    next(groups)  # the embedding
    for layer, weights in zip(range(places[-1].layer + 1), groups, strict=False):
        yield from ((place, weights) for place in places if place.layer == layer)
