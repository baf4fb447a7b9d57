"""Maps checkpoint tensors to a decoder's parameters: canonical names, shapes and packed parameters.

The mapping is derived from the decoder itself, built on the meta device, so a plugin's parts need no table here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces.layer import Layer
from lnlit.models.block import Packed
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.lora import base_parameters
from lnlit.specs import ModelSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """One checkpoint tensor in a decoder: a whole parameter, or some equal runs of rows of a packed one, each of which
    begins at one of `starts`."""

    parameter: str
    starts: tuple[int, ...]
    shape: Shape

    @property
    def run(self) -> int:
        """The number of rows in a run."""
        return self.shape[0] // len(self.starts)

    def of(self, parameter: Tensor) -> Tensor:
        """The tensor's rows of the whole parameter, a view if they are one run."""
        runs = [parameter.narrow(0, start, self.run) for start in self.starts]
        return runs[0] if len(runs) == 1 else torch.cat(runs)


def canonical_name(own_name: str) -> str:
    """Hugging Face's name for a parameter of a decoder."""
    return own_name if own_name.startswith("lm_head.") else f"model.{own_name}"


def layout(decoder: Decoder) -> dict[str, Slot]:
    """Maps canonical names to slots, in the decoder's order and without adapters."""
    packed = decoder.packed_weights()
    slots = {}
    for own_name, parameter in base_parameters(decoder):
        stack = packed.get(own_name, Packed((own_name,)))
        count = len(stack.parts)
        rows = parameter.shape[0] // count
        run = rows // stack.runs
        for index, part in enumerate(stack.parts):
            starts = tuple((at * count + index) * run for at in range(stack.runs))
            slots[canonical_name(part)] = Slot(own_name, starts, (rows, *parameter.shape[1:]))
    return slots


def packed_runs(decoder: Decoder) -> dict[str, int]:
    """How many runs the rows of packed weights are cut into, by the names of the parts that have some."""
    return {name: module.packed_runs for name, module in _packing(decoder)}


def set_packed_runs(decoder: Decoder, runs: Mapping[str, int]) -> None:
    """Lays a decoder that only holds weights out as `runs` says; a part that it does not name has one run."""
    for name, module in _packing(decoder):
        module.packed_runs = runs.get(name, 1)


def _packing(decoder: Decoder) -> Iterator[tuple[str, Any]]:
    return (
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, Layer) and module.packed_weights
    )


def expected_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Maps canonical names to the shapes of all tensors that a checkpoint of this spec holds."""
    return {name: slot.shape for name, slot in layout(build_decoder(spec)).items()}


def check_shapes(where: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raises `UserError` naming the first tensor that is missing, unexpected or of the wrong shape."""
    if missing := [name for name in expected if name not in found]:
        raise UserError(
            f"{where}: {_some(missing)} missing, though the architecture has {_them(missing)}.{_tie_hint(missing)}"
        )
    if unexpected := [name for name in found if name not in expected]:
        raise UserError(
            f"{where}: {_some(unexpected)} unexpected, the architecture has no place for {_them(unexpected)}."
        )
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise UserError(
                f"{where}: tensor {name} has shape {list(found[name])}, the architecture expects {list(shape)}. "
                "The configuration and the weights belong to different models."
            )


def check_packed_runs(where: str, found: Mapping[str, int], decoder: Decoder) -> None:
    """Raises `UserError` if packed weights, and so their moments, have their rows in another order than a decoder's."""
    for name, runs in packed_runs(decoder).items():
        if (theirs := found.get(name, 1)) != runs:
            raise UserError(
                f"{where}: {name} has its packed weights in {theirs} runs of rows, and this lnlit has them in {runs}. "
                "An earlier version wrote the checkpoint: let that one finish the run, or begin a new one from its "
                "weights: lnlit export makes a model folder of them."
            )


def check_parts(where: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raises `UserError` unless the state dict of a training method has the same parts: decoder, head, snapshot."""
    theirs, ours = (" and ".join(sorted({name.partition(".")[0] for name in names})) for names in (found, expected))
    if theirs != ours:
        raise UserError(
            f"{where}: the checkpoint holds {theirs}, this run has {ours}, so it is of another method or "
            "model.reference. Resume with the same settings, or begin a new run from its weights: lnlit export makes a "
            "model folder of them."
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"tensor {shown} is" if len(names) == 1 else f"tensors {shown} are"


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _tie_hint(missing: list[str]) -> str:
    return (
        ' Set "tie_word_embeddings": true if the model shares its embedding.' if missing == ["lm_head.weight"] else ""
    )
