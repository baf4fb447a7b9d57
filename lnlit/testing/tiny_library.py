"""A small block library with random weights, for tests of code that reads libraries."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lnlit.models.build import block_weights, build_block, parameter_count
from lnlit.models.parts import short_name
from lnlit.search.choice import SLOTS, At, LayerVariants, Pair, Variant, alone
from lnlit.search.library import INDEX, Library, LibraryWriter, layer_file
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.testing.tiny import attention, swiglu

_PARTS = {
    "attention": (attention(4), attention(1), PartSpec("single_linear"), NOOP),
    "ffn": (swiglu(24), swiglu(40, fused=True), PartSpec("single_linear"), NOOP),
}


def tiny_library(out: Path, model: str | Path, spec: ModelSpec, pair: bool = True, seed: int = 1) -> Library:
    """A library with four candidates in every slot of `spec`, and one trained pair in layer 1."""
    generator = torch.Generator().manual_seed(seed)

    def weights(layer: int, block: BlockSpec) -> dict[str, torch.Tensor]:
        module = build_block(spec, layer, block).to_empty(device="cpu")
        for name, parameter in module.named_parameters():
            parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.1, generator=generator)
        return block_weights(module)

    writer = LibraryWriter(out, {"model": str(model)})
    for layer, parent in enumerate(spec.layers):
        slots, tensors = {}, {}
        for slot in SLOTS:
            own = getattr(parent, slot)
            slots[slot] = {short_name(slot, own): Variant(own, 0, parent=True)}
            for part in _PARTS[slot]:
                if (name := short_name(slot, part)) not in slots[slot]:
                    block = alone(slot, part)
                    tensors[At(layer, slot, name)] = weights(layer, block)
                    slots[slot][name] = Variant(part, parameter_count(build_block(spec, layer, block)))
        pairs = {}
        if pair and layer == 1:
            tensors[At(layer, "block", "kv1+i24")] = weights(layer, BlockSpec(attention(1), swiglu(24)))
            pairs = {"kv1+i24": Pair(0)}
        writer.write(layer, LayerVariants(**slots, pairs=pairs), tensors)
    return writer.finish(str(model), spec, {})


def undigested(folder: Path) -> Library:
    """The library in the form of earlier versions, without digests of weights."""
    index = json.loads((folder / INDEX).read_text())
    for layer in index["layers"]:
        for choices in layer.values():
            for choice in choices.values():
                choice.pop("sha256", None)
    for number, layer in enumerate(index["layers"]):
        file = layer_file(folder, number)
        save_file(load_file(file), file, metadata={"lnlit": json.dumps({"variants": layer})})
    (folder / INDEX).write_text(json.dumps(index))
    return Library.open(folder)
