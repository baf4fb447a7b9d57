"""Model architectures as data: `ModelSpec` is a frozen, hashable tree with a JSON form.

A model is an embedding, a list of blocks, a final norm and a head. A block has two slots, attention and FFN, and each
slot holds one `PartSpec`: a registry name with that part's arguments. Every change of an architecture (prune, swap,
fuse, solve) is a function from one spec to another; see Llama-Nemotron section 2.1.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lnlit.schema import NotNegative, Positive, Size, check, read


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
    """The part in one slot: a registry name and its arguments, e.g. `PartSpec("swiglu", {"intermediate_size": 8})`."""

    type: str
    args: Mapping[str, Any] = field(default_factory=Args)

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", Args(self.args))

    def replace(self, **changes: Any) -> PartSpec:
        return PartSpec(self.type, {**self.args, **changes})

    @classmethod
    def from_json(cls, data: Any, path: str) -> PartSpec:
        """Reads a part. Raises `UserError`, which begins with `path`, for anything but a name and a mapping of
        arguments."""
        return read(cls, data, path)

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

    theta: Positive = 10_000.0
    scaling: PartSpec | None = None

    def __post_init__(self) -> None:
        check(self, "spec.rope")


@dataclass(frozen=True)
class ModelSpec:
    """The architecture of a decoder. `context_length` is in tokens."""

    vocab_size: Size
    hidden_size: Size
    layers: tuple[BlockSpec, ...]
    context_length: Size
    rope: RopeSpec = RopeSpec()
    norm_eps: NotNegative = 1e-5
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        check(self, "spec")

    def replace(self, **changes: Any) -> ModelSpec:
        return dataclasses.replace(self, **changes)

    def map_parts(self, change: Callable[[PartSpec], PartSpec]) -> ModelSpec:
        """A copy of the spec with `change` applied to every slot."""
        blocks = (BlockSpec(change(block.attention), change(block.ffn)) for block in self.layers)
        return self.replace(layers=tuple(blocks))

    def parts(self) -> Iterator[tuple[str, str, PartSpec]]:
        """Every slot as (path, kind, part), e.g. `("layers[3].ffn", "ffn", PartSpec("noop"))`."""
        for index, block in enumerate(self.layers):
            yield f"layers[{index}].attention", "attention", block.attention
            yield f"layers[{index}].ffn", "ffn", block.ffn

    def diff(self, other: ModelSpec) -> list[str]:
        """The differences between two specs, one readable line each."""
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
        """Reads a spec. Raises `UserError` naming the path of an unknown, missing or mistyped key."""
        return read(cls, data, path)


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
