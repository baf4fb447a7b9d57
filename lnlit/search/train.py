"""Candidates of a library in blockwise local distillation: what each computes beside the parent, and their new library.

Shape suffixes: B rows, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.models.build import block_weights, build_block, load_block
from lnlit.search.choice import SLOTS, STORED, At, LayerVariants, Pair, Slot, Variant, chosen
from lnlit.search.library import Library
from lnlit.search.walk import Step

K = TypeVar("K")


def trainable(library: Library, only: Sequence[str] | None) -> list[At]:
    """What there is to train, in the library's order: everything with weights that one of the patterns `only` fits, or
    every attention and every FFN if it is None.

    The parent's own variants are never trained by themselves, and blocks of any two halves are possible. Raises
    `UserError` for a pattern that fits nothing, and if there is nothing to train.
    """
    every = [at for layer in range(len(library.layers)) for at in _trainable(library, layer)]
    if only is not None:
        return chosen(every, only)
    found = [at for at in every if at.slot != "block"]
    if not found:
        raise UserError(
            f"{library.folder}: no candidate has weights to train. Score and solve with the library as it is."
        )
    return found


def _trainable(library: Library, layer: int) -> Iterator[At]:
    variants = library.layers[layer]
    for slot in SLOTS:
        for name, variant in getattr(variants, slot).items():
            if variant.parameters and not variant.parent:
                yield At(layer, slot, name)
    for choice in variants.choices():
        at = At(layer, "block", str(choice))
        if choice != variants.parent and parameters(library, at):
            yield at


def parameters(library: Library, at: At) -> int:
    """The number of weights that are trained in the candidate `at`."""
    variants = library.layers[at.layer]
    if at.slot == "block":
        choice = library.choice(at)
        return variants.attention[choice.attention].parameters + variants.ffn[choice.ffn].parameters
    return variants.of(at.slot)[at.name].parameters


def divided(sizes: Mapping[K, int], ranks: int) -> dict[K, int]:
    """The rank of each candidate: the largest first, each to the rank with the fewest parameters. Of equal ones, those
    that come first do."""
    loads, owners = [0] * ranks, {}
    for at in sorted(sizes, key=lambda at: -sizes[at]):
        owners[at] = loads.index(min(loads))
        loads[owners[at]] += sizes[at]
    return owners


class Trainee:
    """One candidate with trainable fp32 weights.

    Args:
        library: The library with its initial weights.
        at: The place of the candidate.
        parent: The parent's weights of that layer, which a block with the parent's own half starts from.
        device: The device to train on.
    """

    def __init__(self, library: Library, at: At, parent: Mapping[str, Tensor], device: torch.device) -> None:
        self.at = at
        spec, weights = library.replacement(at, parent)
        fresh = {name: tensor.to(device, torch.float32, copy=True) for name, tensor in weights.items()}
        self.block = load_block(build_block(library.spec, at.layer, spec), fresh)
        self.block.requires_grad_(True)

    def output(self, step: Step) -> Tensor:
        """The parent's layer's output with this candidate in it; the parent's own half is frozen."""
        return step.output(self.block, self.at.slot)

    def weights(self) -> dict[str, Tensor]:
        """The weights by checkpoint names relative to the block, as a library stores them."""
        return block_weights(self.block)


def trained_layer(
    library: Library, layer: int, trained: Mapping[At, tuple[Mapping[str, Tensor], float]]
) -> tuple[LayerVariants, dict[At, Mapping[str, Tensor]]]:
    """One layer of the library with (weights, error) of its trained candidates put in; for `LibraryWriter.write`.

    Weights go back to the dtype the library had them in. Candidates that were not trained stay as they were.
    """
    old = library.layers[layer]
    choices: dict[Slot, dict[str, Variant | Pair]] = {slot: dict(old.of(slot)) for slot in STORED}
    weights: dict[At, Mapping[str, Tensor]] = {
        At(layer, slot, name): library.weights(At(layer, slot, name))
        for slot, named in choices.items()
        for name, choice in named.items()
        if not getattr(choice, "parent", False)
    }
    dtype = next((tensor.dtype for candidate in weights.values() for tensor in candidate.values()), torch.float32)
    for at, (tensors, error) in trained.items():
        if at.layer == layer:
            known = choices[at.slot].get(at.name) or Pair(sum(tensor.numel() for tensor in tensors.values()))
            choices[at.slot][at.name] = replace(known, trained_error=error)
            weights[at] = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return LayerVariants(**{STORED[slot]: named for slot, named in choices.items()}), weights  # type: ignore[arg-type]
