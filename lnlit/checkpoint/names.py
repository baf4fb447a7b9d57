"""Names of tensors in a folder, which may stack several canonical tensors along dim 0 or use other names.

The rules are an `Export`'s `names`; a folder repeats them in its lnlit.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Rules = Mapping[str, Sequence[str]]
Shapes = Mapping[str, tuple[int, ...]]
_LAYER = re.compile(r"(model\.layers\.\d+\.)?(.+)\.(\w+)")


def stored_names(names: Iterable[str], rules: Rules) -> dict[str, list[str]]:
    """Maps each name in the folder to the canonical `names` that it holds, in order."""
    stored_in = {part: whole for whole, parts in rules.items() for part in parts}
    held: dict[str, list[str]] = {}
    for name in names:
        match = _LAYER.fullmatch(name)
        layer, module, leaf = match.groups("") if match else ("", name, "")
        whole = stored_in.get(module)
        held.setdefault(name if whole is None else f"{layer}{whole}.{leaf}", []).append(name)
    order = {part: index for parts in rules.values() for index, part in enumerate(parts)}
    for parts in held.values():
        if len(parts) > 1:
            parts.sort(key=lambda name: order[_LAYER.fullmatch(name).group(2)])  # type: ignore[union-attr]
    return held


def stored_shapes(shapes: Shapes, rules: Rules) -> dict[str, tuple[int, ...]]:
    """The shapes of a folder's tensors, from the shapes of the canonical ones."""
    return {
        stored: (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
        for stored, parts in stored_names(shapes, rules).items()
    }


def as_stored(
    weights: Iterable[tuple[str, Tensor]], expected: Iterable[str], rules: Rules
) -> Iterator[tuple[str, Tensor]]:
    """Canonical weights under the folder's names. Parts of a stacked tensor are held in memory until all have come; if
    some never come, the others are yielded under their canonical names at the end."""
    parts_of = stored_names(expected, rules)
    whole_of = {part: stored for stored, parts in parts_of.items() for part in parts}
    waiting: dict[str, Tensor] = {}
    for name, tensor in weights:
        stored = whole_of.get(name, name)
        parts = parts_of.get(stored, [name])
        if len(parts) == 1 or name in waiting:
            yield stored, tensor
            continue
        waiting[name] = tensor
        if all(part in waiting for part in parts):
            yield stored, torch.cat([waiting.pop(part) for part in parts])
    yield from waiting.items()
