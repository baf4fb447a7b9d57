"""Children of SmolLM2-135M that have the leading rows and columns of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lnlit.checkpoint.folder import save_folder
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.models.build import build_decoder
from lnlit.models.weights import canonical_weights
from lnlit.specs import PartSpec

Changes = Mapping[int, Mapping[str, PartSpec | Mapping[str, int]]]
"""Layer -> slot -> the part that it becomes, or other arguments of its own part."""


def cut(parent: Path, out: Path, changes: Changes) -> Path:
    """The folder `out` with a child of the folder `parent`. Single linears, which no parent has, are random."""
    spec = read_spec(parent)
    layers = list(spec.layers)
    for index, slots in changes.items():
        for slot, change in slots.items():
            part = change if isinstance(change, PartSpec) else getattr(layers[index], slot).replace(**change)
            layers[index] = layers[index].replace(**{slot: part})
    full, small = build_decoder(spec, "cpu"), build_decoder(spec.replace(layers=tuple(layers)), "cpu")
    load_weights(full, parent)
    weights = dict(canonical_weights(full))
    generator = torch.Generator().manual_seed(0)

    def kept(name: str, like: Tensor) -> Tensor:
        if "linear_" in name:
            return 0.02 * torch.randn(like.shape, generator=generator)
        return weights[name][tuple(slice(size) for size in like.shape)].contiguous()

    kept_weights = [(name, kept(name, like)) for name, like in canonical_weights(small)]
    return save_folder(out, small.spec, kept_weights, tokenizer_from=parent, provenance={})
