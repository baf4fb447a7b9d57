"""What a `PartSpec` is: the class behind its name, and what that knows of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lnlit import registry
from lnlit.errors import UserError
from lnlit.interfaces.layer import AttentionLayer, Conversion, FeedForwardLayer, Layer, Parent, Weights
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec


def layer_class(slot: str, part: PartSpec) -> type[Layer]:
    """The class behind a part in a slot, "attention" or "ffn". Raises `UserError` for a name that nothing has."""
    return registry.get(slot, part.type)


def attention_class(part: PartSpec) -> type[AttentionLayer]:
    return registry.get("attention", part.type)


def ffn_class(part: PartSpec) -> type[FeedForwardLayer]:
    return registry.get("ffn", part.type)


def short_name(slot: str, part: PartSpec) -> str:
    """Short name of a part within its slot: noop, linear, kv2, i1536; by all its arguments where it has none."""
    return layer_class(slot, part).short_name(part.args) or str(part)


def conversion(slot: str, parent: PartSpec, part: PartSpec) -> Conversion | None:
    """How `part` gets its first weights in the place of `parent`; None: no training-free way is known."""
    if parent == NOOP:  # there is nothing to make it of
        return None
    return layer_class(slot, part).conversion(part.args, Parent(layer_class(slot, parent), parent.args))


def convert(
    slot: str, parent: PartSpec, part: PartSpec, weights: Weights, scores_F: Tensor | None = None
) -> dict[str, Tensor]:
    """First weights of `part` in the place of `parent`, whose weights are given, without its norm. `scores_F` rank an
    FFN's channels and are needed to narrow it. Raises `UserError` when no training-free way is known.
    """
    way = conversion(slot, parent, part)
    if way is None:
        raise UserError(f"no training-free way from {parent} to {part} is known; leave it out of the candidates.")
    return way(weights, scores_F)


def stored_part(slot: str, part: PartSpec) -> PartSpec:
    """The part whose weights a checkpoint holds: itself, unless it packs those of another one that says so too. A
    subclass has its own name and function, so what it inherits does not count.
    """
    name = layer_class(slot, part).stored_as
    if name is None or layer_class(slot, PartSpec(name)).packed_as != part.type:
        return part
    return PartSpec(name, part.args)


def packed_part(slot: str, part: PartSpec) -> PartSpec:
    """The part that packs the weights of this one: the inverse of `stored_part`. Itself where there is none."""
    name = layer_class(slot, part).packed_as
    if name is None or layer_class(slot, PartSpec(name)).stored_as != part.type:
        return part
    return PartSpec(name, part.args)


def stored(spec: ModelSpec) -> ModelSpec:
    """The same model of the parts whose weights a checkpoint holds, none of them packed."""
    return _mapped(spec, stored_part)


def packed(spec: ModelSpec) -> ModelSpec:
    """The same model with every part that has one in its packed form."""
    return _mapped(spec, packed_part)


def _mapped(spec: ModelSpec, change: Callable[[str, PartSpec], PartSpec]) -> ModelSpec:
    blocks = (BlockSpec(change("attention", block.attention), change("ffn", block.ffn)) for block in spec.layers)
    return spec.replace(layers=tuple(blocks))


def kv_elements(spec: ModelSpec) -> int:
    """Keys and values that one token leaves in the caches of all layers."""
    shapes = (attention_class(block.attention).kv_cache_shape(block.attention.args) for block in spec.layers)
    return sum(2 * heads * size for heads, size in filter(None, shapes))
