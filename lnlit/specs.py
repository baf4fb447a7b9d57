"""Architecture as data: `ModelSpec` is a frozen, hashable tree that round-trips through JSON.

A model is an embedding, a list of blocks, a final norm and a head. A block has two slots, attention and FFN, and each
slot holds one `PartSpec`: a registry name plus that variant's own arguments. Everything that changes an architecture
(prune, swap, fuse, solve) is a function from one spec to another; see Llama-Nemotron section 2.1.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lnlit.errors import UserError, unknown_key

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def is_finite(value: object) -> bool:
    """Whether `value` is a number that a float holds: no truth value, NaN or infinity, and not too large."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


class Args(dict[str, Any]):
    """A read-only, hashable dict for a part's arguments. `dict(args)` gives a copy to edit."""

    def _read_only(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a part's arguments are read-only; use PartSpec.replace(name=value)")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _read_only  # type: ignore

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))

    def __reduce__(self) -> Any:  # dict pickling would call __setitem__
        return (Args, (dict(self),))


@dataclass(frozen=True)
class PartSpec:
    """One variant in one slot: a registry name and its arguments, as `PartSpec("swiglu", {"intermediate_size": 8})`."""

    type: str
    args: Mapping[str, Any] = field(default_factory=Args)

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", Args(self.args))

    def replace(self, **changes: Any) -> PartSpec:
        return PartSpec(self.type, {**self.args, **changes})

    @classmethod
    def from_json(cls, data: Any, path: str) -> PartSpec:
        """Raises `UserError`, which begins with `path`, for anything but a name and a mapping of arguments."""
        part = fields_of(cls, data, path)
        if not isinstance(part["type"], str):
            raise UserError(f"{path}.type: expected a name, got {part['type']!r}")
        if not isinstance(part.get("args", {}), Mapping):
            raise UserError(f"{path}.args: expected a mapping, got {part['args']!r}")
        return cls(part["type"], part.get("args", {}))

    def __str__(self) -> str:
        return f"{self.type}({', '.join(f'{k}={v}' for k, v in self.args.items())})"


NOOP = PartSpec("noop")


@dataclass(frozen=True)
class BlockSpec:
    """One decoder layer: `x += attention(norm(x)); x += ffn(norm(x))`; a `noop` slot has no norm and adds nothing."""

    attention: PartSpec
    ffn: PartSpec

    def replace(self, **changes: PartSpec) -> BlockSpec:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding: base `theta` and an optional scaling rule (`llama3`, `linear`) with its arguments."""

    theta: float = 10_000.0
    scaling: PartSpec | None = None

    def __post_init__(self) -> None:
        if not is_finite(self.theta) or self.theta <= 0:
            raise UserError(f"spec.rope.theta: expected a positive number, got {self.theta!r}")


@dataclass(frozen=True)
class ModelSpec:
    """A whole decoder. Sizes are in elements; `context_length` is in tokens."""

    vocab_size: int
    hidden_size: int
    layers: tuple[BlockSpec, ...]
    context_length: int
    rope: RopeSpec = RopeSpec()
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        for name in ("vocab_size", "hidden_size", "context_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise UserError(f"spec.{name}: expected a positive integer, got {value!r}")
        if not is_finite(self.norm_eps) or self.norm_eps < 0:
            raise UserError(f"spec.norm_eps: expected a number from 0 on, got {self.norm_eps!r}")
        if not isinstance(self.tie_embeddings, bool):
            raise UserError(f"spec.tie_embeddings: expected true or false, got {self.tie_embeddings!r}")

    def replace(self, **changes: Any) -> ModelSpec:
        return dataclasses.replace(self, **changes)

    def map_parts(self, change: Callable[[PartSpec], PartSpec]) -> ModelSpec:
        """A spec with `change` applied to every slot."""
        blocks = (BlockSpec(change(block.attention), change(block.ffn)) for block in self.layers)
        return self.replace(layers=tuple(blocks))

    def parts(self) -> Iterator[tuple[str, str, PartSpec]]:
        """Every slot as (path, kind, part), e.g. `("layers[3].ffn", "ffn", PartSpec("noop"))`."""
        for index, block in enumerate(self.layers):
            yield f"layers[{index}].attention", "attention", block.attention
            yield f"layers[{index}].ffn", "ffn", block.ffn

    def diff(self, other: ModelSpec) -> list[str]:
        """The places where two specs differ, one readable line each."""
        mine, theirs = _flatten(self.to_json()), _flatten(other.to_json())
        absent = "absent"
        return [
            f"{path}: {mine.get(path, absent)} -> {theirs.get(path, absent)}"
            for path in sorted(mine.keys() | theirs.keys())
            if mine.get(path, absent) != theirs.get(path, absent)
        ]

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: str = "spec") -> ModelSpec:
        """Read a spec back. Raises `UserError` naming the path of an unknown, missing or mistyped key."""
        return _read_model(data, path)


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value


def _flatten(value: Any, path: str = "spec") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = {f"{path}.{key}": item for key, item in value.items()}
    elif isinstance(value, list) and value:
        items = {f"{path}[{index}]": item for index, item in enumerate(value)}
    else:
        return {path: value}
    return {leaf: item for key, child in items.items() for leaf, item in _flatten(child, key).items()}


def fields_of(kind: type, data: Any, path: str) -> dict[str, Any]:
    """`data` as keyword arguments for dataclass `kind`, after checking its keys."""
    if not isinstance(data, Mapping):
        raise UserError(f"{path}: expected a mapping, got {data!r}")
    allowed = {f.name: f for f in dataclasses.fields(kind)}
    for key in data:
        if key not in allowed:
            raise unknown_key(path, key, allowed)
    required = [
        name
        for name, f in allowed.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for name in required:
        if name not in data:
            raise UserError(f"{path}: the key {name!r} is missing; required are {', '.join(required)}")
    return dict(data)


def _read_model(data: Any, path: str) -> ModelSpec:
    values = fields_of(ModelSpec, data, path)
    if not isinstance(values["layers"], (list, tuple)):
        raise UserError(f"{path}.layers: expected a list of blocks, got {values['layers']!r}")
    blocks = []
    for index, item in enumerate(values["layers"]):
        where = f"{path}.layers[{index}]"
        block = fields_of(BlockSpec, item, where)
        blocks.append(BlockSpec(*(PartSpec.from_json(block[slot], f"{where}.{slot}") for slot in ("attention", "ffn"))))
    values["layers"] = tuple(blocks)
    if "rope" in values:
        rope = fields_of(RopeSpec, values["rope"], f"{path}.rope")
        if rope.get("scaling") is not None:
            rope["scaling"] = PartSpec.from_json(rope["scaling"], f"{path}.rope.scaling")
        values["rope"] = _placed(RopeSpec, rope, path)
    return _placed(ModelSpec, values, path)


def _placed(kind: type, values: dict[str, Any], path: str) -> Any:
    """An instance whose errors begin with the place of the spec that is read."""
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{path}{str(error).removeprefix('spec')}") from error
