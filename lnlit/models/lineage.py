"""Child layers made of parent layers: taken over, dropped, reordered, fused into one, or added without weights.

A `Lineage` lists, for each layer of a child, the parent layers it is made of. One parent layer is taken over as it is;
several attention-free ones become one wide FFN; none gives a layer that does nothing. Parent layers that are not listed
are dropped. Weights have the names of checkpoints, in which a fused gate-and-up projection is stored as two matrices.

Shape suffixes: D hidden, F intermediate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

Lineage = tuple[tuple[int, ...], ...]
#: Which norm fused FFNs see. "own": each its own, the gains folded into the matrices. "last": all of them the last
#: one's, as in the FFN Fusion paper (equation 5).
Norm = Literal["own", "last"]

EMPTY = BlockSpec(NOOP, NOOP)
FUSABLE = ("swiglu", "swiglu_fused")

_NORM = "post_attention_layernorm.weight"
_GATE, _UP, _DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
_LAYER = re.compile(r"(?P<above>(?:model\.)?layers\.)(?P<index>\d+)\.(?P<below>.+)")


def child_spec(spec: ModelSpec, lineage: Lineage) -> ModelSpec:
    """The child's architecture. `UserError` for a parent layer that is absent, claimed twice, or cannot be fused."""
    _check_lineage(spec, lineage)
    return spec.replace(layers=tuple(_child_block([spec.layers[index] for index in made_of]) for made_of in lineage))


def child_weights(
    spec: ModelSpec, lineage: Lineage, weights: Iterable[tuple[str, Tensor]], norm: Norm = "own"
) -> Iterator[tuple[str, Tensor]]:
    """The child's weights from those of the parent `spec`, both as (checkpoint name, tensor) streams in any order.

    Only the layers of a fused FFN wait for each other, so a stream in layer order holds one fused layer at a time.
    """
    _check_lineage(spec, lineage)
    child_of = {parent: child for child, made_of in enumerate(lineage) for parent in made_of}
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
        if all(ffns[index].keys() == _names(spec.layers[index].ffn) for index in made_of):
            del waiting[child]
            for below, fused in fuse_ffns([ffns.pop(index) for index in made_of], norm).items():
                yield f"{above}{child}.{below}", fused
    if waiting:
        layers = ", ".join(str(index) for child in waiting for index in lineage[child])
        raise UserError(f"the weights of the FFNs to fuse (layers {layers}) are incomplete or have unknown names.")


def hidden_pairs(lineage: Lineage) -> list[tuple[int, int]]:
    """(child layer, parent layer) whose outputs stand at the same depth, for distillation to match: up to there, both
    have done the same of the layers that the child has. Inside a run in another order there is no such depth.
    """
    pairs, reached = [], -1
    for child, made_of in enumerate(lineage):
        reached = max(reached, *made_of, -1)
        ahead = min(chain.from_iterable(lineage[child + 1 :]), default=reached + 1)
        if made_of and reached < ahead:
            pairs.append((child, reached))
    return pairs


def fuse_ffns(ffns: Sequence[Mapping[str, Tensor]], norm: Norm = "own") -> dict[str, Tensor]:
    """One SwiGLU and its norm that compute `sum_j FFN_j(norm_j(x))`; names below the block, as "mlp.up_proj.weight".

    Rows of gate and up [F, D] are stacked, columns of down [D, F] put side by side (FFN Fusion, Theorem 3.1), biases of
    down added. An RMSNorm's gain is diagonal, so `own` multiplies the columns of gate and up by it, in fp32, and leaves
    a gain of one: every FFN then sees its own norm, exactly up to the rounding of the weights' dtype.
    """
    last = ffns[-1][_NORM]
    fused = {_NORM: torch.ones_like(last) if norm == "own" else last}
    for name in (_GATE, _UP):
        rows = [_folded(ffn[f"{name}.weight"], ffn[_NORM]) if norm == "own" else ffn[f"{name}.weight"] for ffn in ffns]
        fused[f"{name}.weight"] = torch.cat(rows)
    fused[f"{_DOWN}.weight"] = torch.cat([ffn[f"{_DOWN}.weight"] for ffn in ffns], dim=1)
    if any(f"{_DOWN}.bias" in ffn for ffn in ffns):
        for name in (_GATE, _UP):
            fused[f"{name}.bias"] = torch.cat([_bias(ffn, name) for ffn in ffns])
        total = torch.stack([_wide(_bias(ffn, _DOWN)) for ffn in ffns]).sum(0)
        fused[f"{_DOWN}.bias"] = total.to(last.dtype)
    return fused


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
            if len(made_of) > 1 and not is_fusable(block):
                raise UserError(
                    f"layer {parent} ({block.attention}, {block.ffn}) cannot be fused: "
                    f"that takes a layer without attention and an FFN of type {' or '.join(FUSABLE)}."
                )


def is_fusable(block: BlockSpec) -> bool:
    """Whether a layer is nothing but an FFN that can be concatenated with others."""
    return block.attention.type == "noop" and block.ffn.type in FUSABLE


def _child_block(blocks: Sequence[BlockSpec]) -> BlockSpec:
    if len(blocks) < 2:
        return blocks[0] if blocks else EMPTY
    parts = [block.ffn for block in blocks]
    kinds = {part.type for part in parts}
    args = {"intermediate_size": sum(part.args["intermediate_size"] for part in parts)}
    if any(part.args.get("bias") for part in parts):
        args["bias"] = True
    return BlockSpec(NOOP, PartSpec(kinds.pop() if len(kinds) == 1 else "swiglu", args))


def _names(part: PartSpec) -> set[str]:
    leaves = ("weight", "bias") if part.args.get("bias") else ("weight",)
    return {_NORM, *(f"{name}.{leaf}" for name in (_GATE, _UP, _DOWN) for leaf in leaves)}


def _folded(weight_FD: Tensor, gain_D: Tensor) -> Tensor:
    return (_wide(weight_FD) * _wide(gain_D)).to(weight_FD.dtype)


def _bias(ffn: Mapping[str, Tensor], name: str) -> Tensor:
    """The bias of a projection; zeros when its FFN has none, but another in the group does."""
    weight = ffn[f"{name}.weight"]
    return ffn.get(f"{name}.bias", weight.new_zeros(weight.shape[0]))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
