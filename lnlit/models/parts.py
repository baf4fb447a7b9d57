"""Looks up the classes of parts, and asks them what they declare about themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lnlit import registry
from lnlit.builtins import BUILTINS
from lnlit.interfaces.layer import AttentionLayer, Conversion, FeedForwardLayer, Layer, Parent
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec


def layer_class(slot: str, part: PartSpec) -> type[Layer]:
    """The class of a part in a slot, "attention" or "ffn". Raises `UserError` for an unknown name."""
    return registry.get(slot, part.type)


def attention_class(part: PartSpec) -> type[AttentionLayer]:
    return registry.get("attention", part.type)


def ffn_class(part: PartSpec) -> type[FeedForwardLayer]:
    return registry.get("ffn", part.type)


def short_name(slot: str, part: PartSpec) -> str:
    """The short name of a part within its slot, such as noop, linear, kv2 or i1536, or a text with all arguments if its
    class defines none. That of a plugin's part begins with its type, as geglu-i1536: two types may have the same
    arguments."""
    short = layer_class(slot, part).short_name(part.args)
    if short is None:
        return str(part)
    return short if part.type in BUILTINS[slot] else f"{part.type}-{short}"


def conversions(slot: str, parent: PartSpec, part: PartSpec) -> Sequence[Conversion]:
    """Functions that compute initial weights of `part` from those of `parent` without training; none if no way is
    known."""
    if parent == NOOP:  # there is nothing to make it of
        return ()
    return layer_class(slot, part).conversions(part.args, Parent(layer_class(slot, parent), parent.args))


def stored_part(slot: str, part: PartSpec) -> PartSpec:
    """The part in the form in which checkpoints store its weights: the unpacked part if this one packs several weights,
    else itself. A subclass that only inherits `stored_as` is a different function and counts as its own form."""
    name = layer_class(slot, part).stored_as
    if name is None or layer_class(slot, PartSpec(name)).packed_as != part.type:
        return part
    return PartSpec(name, part.args)


def packed_part(slot: str, part: PartSpec) -> PartSpec:
    """The part that packs the weights of this one, the inverse of `stored_part`, or the part itself if there is
    none."""
    name = layer_class(slot, part).packed_as
    if name is None or layer_class(slot, PartSpec(name)).stored_as != part.type:
        return part
    return PartSpec(name, part.args)


def stored(spec: ModelSpec) -> ModelSpec:
    """The same model with all parts in the form in which checkpoints store them (see `stored_part`)."""
    return _mapped(spec, stored_part)


def packed(spec: ModelSpec) -> ModelSpec:
    """The same model with all parts in their packed form, if they have one."""
    return _mapped(spec, packed_part)


def _mapped(spec: ModelSpec, change: Callable[[str, PartSpec], PartSpec]) -> ModelSpec:
    blocks = (BlockSpec(change("attention", block.attention), change("ffn", block.ffn)) for block in spec.layers)
    return spec.replace(layers=tuple(blocks))


def kv_elements(spec: ModelSpec) -> int:
    """The number of key and value elements that one token adds to the KV caches of all layers."""
    shapes = (attention_class(block.attention).kv_cache_shape(block.attention.args) for block in spec.layers)
    return sum(2 * heads * size for heads, size in filter(None, shapes))
