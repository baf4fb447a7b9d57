"""Maps checkpoint tensors to a decoder's parameters: canonical names, shapes and packed parameters.

The mapping is derived from the decoder itself, built on the meta device, so a plugin's parts need no table here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lnlit.errors import UserError
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.lora import base_parameters
from lnlit.specs import ModelSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """One checkpoint tensor in a decoder: a whole parameter, or rows `start` to `start + shape[0]` of a packed one."""

    parameter: str
    start: int
    shape: Shape


def canonical_name(own_name: str) -> str:
    """Hugging Face's name for a parameter of a decoder."""
    return own_name if own_name.startswith("lm_head.") else f"model.{own_name}"


def layout(decoder: Decoder) -> dict[str, Slot]:
    """Maps canonical names to slots, in the decoder's order and without adapters. A packed parameter is split evenly
    along dim 0."""
    packed = decoder.packed_weights()
    slots = {}
    for own_name, parameter in base_parameters(decoder):
        parts = packed.get(own_name, (own_name,))
        rows = parameter.shape[0] // len(parts)
        for index, part in enumerate(parts):
            slots[canonical_name(part)] = Slot(own_name, index * rows, (rows, *parameter.shape[1:]))
    return slots


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
