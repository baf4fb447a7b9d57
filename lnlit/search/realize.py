"""From one choice per layer to the child's architecture and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from lnlit.errors import UserError
from lnlit.search.library import Library, pair_name
from lnlit.specs import ModelSpec


def split_choice(library: Library, choice: Sequence[str]) -> list[tuple[str, str]]:
    """(attention, ffn) names of each layer from names like "kv1+i768". Raises `UserError` for one it does not have."""
    if len(choice) != len(library.layers):
        raise UserError(
            f"the solution chooses {len(choice)} blocks, {library.folder} has {len(library.layers)} layers; "
            "they belong to different models."
        )
    pairs = []
    for layer, name in enumerate(choice):
        variants = library.layers[layer]
        halves = [(a, f) for a in variants.attention for f in variants.ffn if pair_name(a, f) == name]
        if not halves:
            raise UserError(
                f"layer {layer}: the solution chooses {name!r}, which the library {library.folder} does not have. "
                f"Attention: {', '.join(variants.attention)}; FFN: {', '.join(variants.ffn)}."
            )
        pairs.append(halves[0])
    return pairs


def composed_spec(library: Library, pairs: Sequence[tuple[str, str]]) -> ModelSpec:
    """The parent's architecture with the chosen blocks."""
    return library.spec.replace(layers=tuple(library.block_spec(layer, *pair) for layer, pair in enumerate(pairs)))


def composed_layers(
    library: Library, pairs: Sequence[tuple[str, str]], parent: Iterable[Mapping[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """Each layer's weights by their names below the block. `parent` yields the parent's layers likewise, in order."""
    for layer, (pair, weights) in enumerate(zip(pairs, parent, strict=True)):
        yield library.block_weights(layer, *pair, weights)
