"""Candidates of a library in blockwise local distillation: what each computes beside the parent, and their new library.

Shape suffixes: B rows, T tokens, D hidden, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import TokenBatch
from lnlit.interfaces.layer import Attend
from lnlit.interfaces.patterns import fitting
from lnlit.models.block import Block
from lnlit.models.build import block_weights, build_block, load_block
from lnlit.models.decoder import Decoder
from lnlit.models.parallelize import whole
from lnlit.search.library import SLOTS, LayerVariants, Library, Pair, Slot, Variant, pair_name
from lnlit.specs import NOOP, BlockSpec


@dataclass(frozen=True, order=True)
class Place:
    """Which candidate of a library: slot "pairs" and a name like "kv1+i768" are both halves of a block together."""

    layer: int
    slot: Slot
    name: str

    def __str__(self) -> str:
        return f"layer_{self.layer:02d}/{self.slot}/{self.name}"


def places(library: Library, only: Sequence[str]) -> list[Place]:
    """What there is to train, in the library's order: everything with weights that one of the patterns `only` matches.

    A pattern is matched against "layer_03/attention/kv1", with * and ?. The parent's own variants are never trained by
    themselves, and pairs of any two halves are possible. Raises `UserError` for a pattern that matches nothing.
    """
    possible = [place for layer in range(len(library.layers)) for place in _trainable(library, layer)]
    names = list(map(str, possible))
    for pattern in only:
        if not fitting(pattern, names):
            raise UserError(
                f"only: {pattern!r} matches no candidate of {library.folder} that has weights. They are called like "
                f"{', '.join(map(str, possible[:3])) or 'nothing'}."
            )
    wanted = {name for pattern in only for name in fitting(pattern, names)}
    return [place for place in possible if str(place) in wanted]


def _trainable(library: Library, layer: int) -> Iterator[Place]:
    variants = library.layers[layer]
    for slot in SLOTS:
        for name, variant in getattr(variants, slot).items():
            if variant.parameters and not variant.parent:
                yield Place(layer, slot, name)
    for attention, a in variants.attention.items():
        for ffn, f in variants.ffn.items():
            if a.parameters + f.parameters and not (a.parent and f.parent):
                yield Place(layer, "pairs", pair_name(attention, ffn))


def parameters(library: Library, place: Place) -> int:
    """How many weights train there."""
    variants = library.layers[place.layer]
    if place.slot == "pairs":
        attention, ffn = _halves(library, place)
        return variants.attention[attention].parameters + variants.ffn[ffn].parameters
    return getattr(variants, place.slot)[place.name].parameters


def _halves(library: Library, place: Place) -> tuple[str, str]:
    """Names of a pair's two halves."""
    variants = library.layers[place.layer]
    return next((a, f) for a in variants.attention for f in variants.ffn if pair_name(a, f) == place.name)


@dataclass(frozen=True)
class ParentStep:
    """One layer of the parent on some rows: its block and the residual stream before, within and behind it."""

    block: Block
    x_BTD: Tensor
    h_BTD: Tensor
    out_BTD: Tensor
    attend: Attend
    rope: Mapping[int, tuple[Tensor, Tensor]]


def parent_steps(
    parent: Decoder, batches: Sequence[TokenBatch], layers: Sequence[int]
) -> Iterator[tuple[int, list[ParentStep]]]:
    """(layer, the parent's step on each batch) at `layers`, from one forward pass that ends behind the last of them.

    No gradients. A sharded parent's layer is gathered until the next one is asked for; every rank must ask for all.
    """
    with torch.no_grad(), whole(parent):
        streams = [parent.embed(batch.tokens) for batch in batches]
        around = [
            parent.surroundings(batch.tokens, x_BTD.dtype, batch.positions, batch.lengths)
            for batch, x_BTD in zip(batches, streams, strict=True)
        ]
    for layer in range(max(layers) + 1):
        block: Block = parent.layers[layer]  # type: ignore[assignment]
        with whole(block):
            steps = []
            with torch.no_grad():  # not around the yield, or it would reach into the caller's loop
                for x_BTD, (attention, rope) in zip(streams, around, strict=True):
                    attend = attention.layer(layer)
                    h_BTD = block.add_attention(x_BTD, attend, rope)
                    steps.append(ParentStep(block, x_BTD, h_BTD, block.add_ffn(h_BTD), attend, rope))
            streams = [step.out_BTD for step in steps]
            if layer in layers:
                yield layer, steps


class Trainee:
    """One candidate with trainable fp32 weights.

    Args:
        library: where its first weights come from.
        place: which candidate it is.
        parent: the parent's weights of that layer, which a pair with the parent's own half starts from.
        device: where to train.
    """

    def __init__(self, library: Library, place: Place, parent: Mapping[str, Tensor], device: torch.device) -> None:
        self.place = place
        if place.slot == "pairs":
            attention, ffn = _halves(library, place)
            spec = library.block_spec(place.layer, attention, ffn)
            weights = library.block_weights(place.layer, attention, ffn, parent)
        else:
            part = getattr(library.layers[place.layer], place.slot)[place.name].part
            spec = BlockSpec(NOOP, NOOP).replace(**{place.slot: part})
            weights = library.weights(place.layer, place.slot, place.name)
        fresh = {name: tensor.to(device, torch.float32, copy=True) for name, tensor in weights.items()}
        self.block = load_block(build_block(library.spec, place.layer, spec), fresh)
        self.block.requires_grad_(True)

    def output(self, at: ParentStep) -> Tensor:
        """The block's output with this candidate in it, on the parent's input; the parent's own half is frozen."""
        if self.place.slot == "ffn":
            return self.block.add_ffn(at.h_BTD)
        if self.place.slot == "attention":
            return at.block.add_ffn(self.block.add_attention(at.x_BTD, at.attend, at.rope))
        return self.block(at.x_BTD, at.attend, at.rope)

    def weights(self) -> dict[str, Tensor]:
        """By checkpoint names below the block, as a library stores them."""
        return block_weights(self.block)


def trained_layer(
    library: Library, layer: int, trained: Mapping[Place, tuple[Mapping[str, Tensor], float]]
) -> tuple[LayerVariants, dict[tuple[Slot, str], Mapping[str, Tensor]]]:
    """One layer of the library with (weights, error) of its trained candidates put in; for `LibraryWriter.write`.

    Weights go back to the dtype the library had them in. Candidates that were not trained stay as they were.
    """
    old = library.layers[layer]
    choices: dict[Slot, dict[str, Variant | Pair]] = {
        "attention": dict(old.attention),
        "ffn": dict(old.ffn),
        "pairs": dict(old.pairs),
    }
    weights: dict[tuple[Slot, str], Mapping[str, Tensor]] = {
        (slot, name): library.weights(layer, slot, name)
        for slot, named in choices.items()
        for name, choice in named.items()
        if not getattr(choice, "parent", False)
    }
    dtype = next((tensor.dtype for candidate in weights.values() for tensor in candidate.values()), torch.float32)
    for place, (tensors, error) in trained.items():
        if place.layer != layer:
            continue
        known = choices[place.slot].get(place.name) or Pair(sum(tensor.numel() for tensor in tensors.values()))
        choices[place.slot][place.name] = replace(known, trained_error=error)
        weights[place.slot, place.name] = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return LayerVariants(**choices), weights  # type: ignore[arg-type]
