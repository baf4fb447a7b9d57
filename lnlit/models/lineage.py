"""Builds child models whose layers are parent layers, kept, dropped, reordered or fused, or layers without weights.

A `Lineage` lists the parent layers that each child layer is made of. One parent layer is copied, several attention-free
ones become one wide FFN, and none gives a layer with two empty slots. Parent layers that are not listed are dropped.
Weights have checkpoint names, so a fused gate-and-up projection appears as two matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces.layer import Norm
from lnlit.models.build import block_weights, build_block
from lnlit.models.parts import ffn_class, stored_part
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

Lineage = tuple[tuple[int, ...], ...]

EMPTY = BlockSpec(NOOP, NOOP)

_LAYER = re.compile(r"(?P<above>(?:model\.)?layers\.)(?P<index>\d+)\.(?P<below>.+)")


def child_spec(spec: ModelSpec, lineage: Lineage) -> ModelSpec:
    """The child's architecture. Raises `UserError` for a parent layer that does not exist, is listed twice, or cannot
    be fused."""
    _check_lineage(spec, lineage)
    return spec.replace(layers=tuple(_child_block([spec.layers[index] for index in made_of]) for made_of in lineage))


def child_weights(
    spec: ModelSpec, lineage: Lineage, weights: Iterable[tuple[str, Tensor]], norm: Norm = "own"
) -> Iterator[tuple[str, Tensor]]:
    """Yields the child's weights, given those of the parent, whose spec is `spec`. Both are (checkpoint name, tensor)
    streams in any order.

    Only the weights of layers to be fused are held back, so a stream in layer order needs memory for one fused layer.
    """
    _check_lineage(spec, lineage)
    child_of = {parent: child for child, made_of in enumerate(lineage) for parent in made_of}
    names = {index: _names(spec, index) for made_of in lineage if len(made_of) > 1 for index in made_of}
    waiting: dict[int, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in weights:
        place = _LAYER.fullmatch(name)
        if place is None:
            yield name, tensor
            continue
        above, parent, below = place["above"], int(place["index"]), place["below"]
        child = child_of.get(parent)
        if child is None:
            continue
        made_of = lineage[child]
        if len(made_of) == 1:
            yield f"{above}{child}.{below}", tensor
            continue
        ffns = waiting.setdefault(child, {index: {} for index in made_of})
        ffns[parent][below] = tensor
        if all(ffns[index].keys() == names[index] for index in made_of):
            del waiting[child]
            fuse = ffn_class(spec.layers[made_of[0]].ffn).fuse
            for below, fused in fuse([ffns.pop(index) for index in made_of], norm).items():
                yield f"{above}{child}.{below}", fused
    if waiting:
        layers = ", ".join(str(index) for child in waiting for index in lineage[child])
        raise UserError(f"the weights of the FFNs to fuse (layers {layers}) are incomplete or have unknown names.")


def hidden_pairs(lineage: Lineage) -> list[tuple[int, int]]:
    """Pairs (child layer, parent layer) whose outputs distillation can match, because both have computed the same
    layers up to there. There is no such pair inside a group of reordered layers."""
    pairs, reached = [], -1
    for child, made_of in enumerate(lineage):
        reached = max(reached, *made_of, -1)
        ahead = min(chain.from_iterable(lineage[child + 1 :]), default=reached + 1)
        if made_of and reached < ahead:
            pairs.append((child, reached))
    return pairs


def _check_lineage(spec: ModelSpec, lineage: Lineage) -> None:
    claimed: dict[int, int] = {}
    for child, made_of in enumerate(lineage):
        for parent in made_of:
            if not 0 <= parent < len(spec.layers):
                raise UserError(f"layer {parent}: the model has layers 0 to {len(spec.layers) - 1}.")
            if parent in claimed:
                raise UserError(
                    f"layer {parent} is claimed twice, by child layers {claimed[parent]} and {child}; "
                    "a layer can go to one place only."
                )
            claimed[parent] = child
            block = spec.layers[parent]
            if len(made_of) > 1 and not can_fuse(block, spec.layers[made_of[0]]):
                raise UserError(
                    f"layer {parent} ({block.attention}, {block.ffn}) cannot be fused: that takes a layer without "
                    f"attention, and an FFN that can stand beside that of layer {made_of[0]}."
                )


def _names(spec: ModelSpec, layer: int) -> set[str]:
    """The names, relative to the block, of the weights that a checkpoint holds for a layer."""
    return set(block_weights(build_block(spec, layer, spec.layers[layer])))


def fusable_kind(block: BlockSpec) -> str | None:
    """The registry name of a block's FFN, in the form in which checkpoints store it, if the block has no attention and
    its FFN can be fused with others of the same name. None for any other block."""
    if block.attention != NOOP or ffn_class(block.ffn).channels(block.ffn.args) is None:
        return None
    return stored_part("ffn", block.ffn).type


def can_fuse(block: BlockSpec, other: BlockSpec) -> bool:
    """True if both blocks have no attention and their FFNs can be fused."""
    return fusable_kind(block) is not None and fusable_kind(block) == fusable_kind(other)


def fused_ffn(parts: Sequence[PartSpec]) -> PartSpec:
    """The FFN that computes the sum of several FFNs. It is packed if all of them are."""
    alike = len({part.type for part in parts}) == 1
    kind = parts[0] if alike else stored_part("ffn", parts[0])
    return PartSpec(kind.type, ffn_class(kind).side_by_side([part.args for part in parts]))


def _child_block(blocks: Sequence[BlockSpec]) -> BlockSpec:
    if len(blocks) < 2:
        return blocks[0] if blocks else EMPTY
    return BlockSpec(NOOP, fused_ffn([block.ffn for block in blocks]))
