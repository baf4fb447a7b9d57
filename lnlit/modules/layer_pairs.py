"""Pairs each layer of a student with the layer of the teacher that it is to imitate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lnlit.checkpoint.descent import ancestors
from lnlit.errors import UserError
from lnlit.models.lineage import EMPTY, hidden_pairs
from lnlit.specs import ModelSpec

_BY_HAND = (
    "say which layers belong together: hidden_layers: [[model layer, teacher layer], ...]. A fused layer belongs to "
    "the last layer it is made of. Or set cosine_weight: 0."
)


def layer_pairs(
    given: Sequence[tuple[int, int]] | None, model: str, student: ModelSpec, source: str, teacher: ModelSpec
) -> Mapping[int, int]:
    """Maps each block of the student (`model`) to the block of the teacher (`source`) whose output it is to match.

    If pairs are not `given`, they follow from the provenance of both models, through their nearest common ancestor,
    which usually is the teacher itself. Models without a common ancestor are paired one to one if their layers
    correspond. Raises `UserError` if no pairing is known, if a given pair is out of range or repeats a block, and if
    hidden sizes differ.
    """
    if student.hidden_size != teacher.hidden_size:
        raise UserError(
            f"cosine: the model's hidden size is {student.hidden_size}, the teacher's {teacher.hidden_size}, so their "
            "hidden states cannot be compared. Set cosine_weight: 0."
        )
    if given is None:
        return _recorded(model, source) or _one_to_one(model, student, source, teacher)
    depths = len(student.layers), len(teacher.layers)
    for side, depth, name in zip((0, 1), depths, ("model", "teacher"), strict=True):
        used = [pair[side] for pair in given]
        for index in used:
            if not 0 <= index < depth:
                raise UserError(f"hidden_layers: there is no layer {index}; the {name} has layers 0 to {depth - 1}.")
        if len(set(used)) < len(used):
            raise UserError(f"hidden_layers: a layer of the {name} comes twice in {[list(pair) for pair in given]}.")
    if not given:
        raise UserError("hidden_layers: the list is empty; give at least one pair, or set cosine_weight: 0.")
    return dict(given)


def _recorded(model: str, source: str) -> dict[int, int]:
    """Pairs through the nearest common ancestor, or none without one."""
    theirs: dict[str, dict[int, int]] = {}
    for name, made_of in ancestors(source):
        theirs.setdefault(name, {layer: block for block, layer in hidden_pairs(made_of)})
    for name, made_of in ancestors(model):
        if name in theirs:
            return {block: theirs[name][layer] for block, layer in hidden_pairs(made_of) if layer in theirs[name]}
    return {}


def _one_to_one(model: str, student: ModelSpec, source: str, teacher: ModelSpec) -> dict[int, int]:
    depths = len(student.layers), len(teacher.layers)
    unrelated = f"and {model} does not record that it was made from {source}; {_BY_HAND}"
    if depths[0] != depths[1]:
        raise UserError(f"cosine: the model has {depths[0]} layers and the teacher {depths[1]}, {unrelated}")
    empty = [[index for index, block in enumerate(spec.layers) if block == EMPTY] for spec in (student, teacher)]
    if empty[0] != empty[1]:
        raise UserError(
            f"cosine: the layers without weights are {empty[0] or 'none'} in the model and {empty[1] or 'none'} in the "
            f"teacher, so its layers may have moved, {unrelated}"
        )
    one_to_one = tuple((index,) for index in range(depths[0]))
    if any(made_of != one_to_one for path in (model, source) for _, made_of in ancestors(path)):
        raise UserError(f"cosine: layers were moved or fused since the model or the teacher was made, {unrelated}")
    return {index: index for index in range(depths[0])}
