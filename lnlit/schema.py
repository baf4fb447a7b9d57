"""Reads frozen dataclasses from JSON or YAML. Every error has the same form: place, expected, got, next step.

The annotations of a dataclass are its schema: other dataclasses, `bool`, `int`, `float`, `str`, `Any`, `Literal`,
unions, `tuple`, `list`, `Sequence` and `Mapping`. `Annotated[float, AtLeast(0)]` gives a number a lower bound. Every
`float` must be finite, a boolean is not a number, and an `int` has no fraction.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from lnlit.errors import UserError, did_you_mean, shown, unknown_key

T = TypeVar("T")

#: The largest number allowed, so that sums stay finite.
LARGEST = 1e300


@dataclass(frozen=True)
class AtLeast:
    """A lower bound of a number: `least` or more, or with `itself=False` more than `least`."""

    least: float
    itself: bool = True

    def holds(self, value: float) -> bool:
        return value >= self.least if self.itself else value > self.least

    def __str__(self) -> str:
        return f"{self.least:g} or more" if self.itself else f"above {self.least:g}"


Whole = Annotated[int, AtLeast(0)]
Size = Annotated[int, AtLeast(1)]
NotNegative = Annotated[float, AtLeast(0)]
Positive = Annotated[float, AtLeast(0, itself=False)]


def is_finite(value: object) -> bool:
    """True if `value` is a number that is not NaN, infinite, boolean or larger than `LARGEST` in magnitude."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def read(kind: Any, data: Any, place: str, *, then: str = "", others: bool = False) -> Any:
    """Converts `data` to a value of the type `kind`.

    Args:
        kind: A dataclass, or any other annotation that the schema supports.
        data: The value from JSON or YAML.
        place: The place of the value for error messages: "problem", or "costs.json:" with a colon for a file.
        then: A sentence that tells the user what to do about an error.
        others: Accept keys of the outermost object that its dataclass does not have.

    Raises `UserError` naming the place of an unknown, missing, mistyped or out-of-range value.
    """
    if others and isinstance(data, Mapping):
        data = {key: data[key] for key in _hints(kind) if key in data}
    return _Reader(then).value(kind, data, place)


def check(instance: Any, place: str) -> None:
    """Raises `UserError` unless each field of a dataclass instance has a value of its annotated type. Nested dataclass
    instances are not checked again. A field of a type that the schema does not have, as a function, is its owner's to
    check."""
    reader = _Reader()
    for name, kind in _hints(type(instance)).items():
        with suppress(_NotInSchema):
            reader.value(kind, getattr(instance, name), f"{place}.{name}")


def inside(place: str, key: str) -> str:
    """The place of a key in the object at `place`."""
    return f"{place} {key}" if place.endswith(":") else f"{place}.{key}"


_WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
_LISTS = (tuple, list, Sequence)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


@cache
def _required(kind: type) -> list[str]:
    missing = dataclasses.MISSING
    own = [field for field in dataclasses.fields(kind) if field.init]
    return [field.name for field in own if field.default is missing and field.default_factory is missing]


class _NotInSchema(TypeError):
    """An annotation that the schema does not support: a mistake in the code, not in the data."""


@dataclass(frozen=True)
class _Reader:
    then: str = ""

    def value(self, kind: Any, data: Any, place: str) -> Any:
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if kind in _WORDS:
            return self._scalar(kind, data, place)
        if dataclasses.is_dataclass(kind):
            return data if isinstance(data, kind) else self._object(kind, data, place)  # type: ignore[arg-type]
        if origin is Annotated:
            return self._bounded(args[0], args[1:], data, place)
        if origin is Literal:
            return self._one_of(args, data, place)
        if origin in (typing.Union, types.UnionType):
            return self._any_of(args, data, place)
        if origin in _LISTS:
            return self._list(origin, args, data, place)
        if origin is Mapping or origin is dict:
            return self._mapping(args, data, place)
        if kind is Any:
            return data
        raise _NotInSchema(f"{place}: a schema has no {kind!r}")

    def wrong(self, place: str, expected: str, data: Any, hint: str = "") -> UserError:
        got = "null" if data is None else shown(data)
        return UserError(f"{place.rstrip(':')}: expected {expected}, got {got}.{hint}{self._next}")

    @property
    def _next(self) -> str:
        return f" {self.then}" if self.then else ""

    def _scalar(self, kind: Any, data: Any, place: str, bounds: str = "") -> Any:
        is_number = kind is float and is_finite(data)
        if is_number or (isinstance(data, kind) and kind is not float and (kind is bool) == isinstance(data, bool)):
            return data
        raise self.wrong(place, _WORDS[kind] + bounds, data)

    def _bounded(self, kind: Any, bounds: tuple[AtLeast, ...], data: Any, place: str) -> Any:
        told = "".join(f", {bound}" for bound in bounds)
        value = self._scalar(kind, data, place, told)
        if not all(bound.holds(value) for bound in bounds):
            raise self.wrong(place, _WORDS[kind] + told, data)
        return value

    def _one_of(self, allowed: tuple[Any, ...], data: Any, place: str) -> Any:
        if not any(data == one and type(data) is type(one) for one in allowed):
            words = [str(one) for one in allowed]
            hint = did_you_mean(data, words) if isinstance(data, str) else ""
            raise self.wrong(place, f"one of {', '.join(words)}", data, hint)
        return data

    def _any_of(self, kinds: tuple[Any, ...], data: Any, place: str) -> Any:
        if data is None and types.NoneType in kinds:
            return None
        kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
        for kind in kinds[:-1]:
            try:
                return self.value(kind, data, place)
            except UserError:
                continue
        try:
            return self.value(kinds[-1], data, place)
        except UserError:
            if len(kinds) == 1 or not all(kind in _WORDS for kind in kinds):
                raise
            raise self.wrong(place, " or ".join(_WORDS[kind] for kind in kinds), data) from None

    def _list(self, origin: Any, kinds: tuple[Any, ...], data: Any, place: str) -> Any:
        length = len(kinds) if origin is tuple and ... not in kinds else None
        if not isinstance(data, list | tuple) or (length is not None and len(data) != length):
            raise self.wrong(place, "a list" if length is None else f"a list of {length}", data)
        each = kinds if length is not None else [kinds[0]] * len(data)
        items = [self.value(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(each, data, strict=True))]
        return items if origin is list else tuple(items)

    def _mapping(self, kinds: tuple[Any, ...], data: Any, place: str) -> dict[Any, Any]:
        if not isinstance(data, Mapping):
            raise self.wrong(place, "a mapping", data)
        of_key, of_value = kinds
        return {
            self.value(of_key, key, f"{place}: the key"): self.value(of_value, item, f"{place}[{key!r}]")
            for key, item in data.items()
        }

    def _object(self, kind: type[T], data: Any, place: str) -> T:
        if not isinstance(data, Mapping):
            raise self.wrong(place, "a mapping", data)
        hints = _hints(kind)
        for key in data:
            if key not in hints:
                raise UserError(f"{unknown_key(place.rstrip(':'), key, hints)}{self._next}")
        for name in _required(kind):
            if name not in data:
                told = f"the key {name!r} is missing; required are {', '.join(_required(kind))}."
                raise UserError(f"{place.rstrip(':')}: {told}{self._next}")
        given = [name for name in hints if name in data]
        return kind(**{name: self.value(hints[name], data[name], inside(place, name)) for name in given})
