"""Values as JSON, for messages between the two sides of a code test (`code_process`).

Plain values are copied. Mutable containers are numbered, so that one that occurs in two places, or in itself, is still
one on the other side, and the other side can report changes to it. Other values go to a function of the caller's.
"""

from __future__ import annotations

import builtins
import datetime
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, ItemsView, KeysView, Sequence, ValuesView
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

_DEPTH = 100


class NotPlainError(TypeError):
    """A value of a kind that cannot be sent, such as a module."""


class TooMuchError(TypeError):
    """More data than may be sent, or nested too deeply."""


#: Kind -> (type, its parts, how it is made of them): values that cannot be changed. Views stay views: they compare so.
_FIXED: dict[str, tuple[type, Callable[[Any], list[Any]], Callable[[list[Any]], Any]]] = {
    "tuple": (tuple, list, tuple),
    "frozenset": (frozenset, list, frozenset),
    "range": (range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    "slice": (slice, lambda value: [value.start, value.stop, value.step], lambda parts: slice(*parts)),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "bytes": (bytes, lambda value: [value.hex()], lambda parts: bytes.fromhex(*parts)),
    "keys": (KeysView, list, lambda keys: dict.fromkeys(keys).keys()),
    "items": (ItemsView, list, lambda items: dict(items).items()),
    "values": (ValuesView, list, lambda values: dict(enumerate(values)).values()),
    "fraction": (Fraction, lambda value: [value.numerator, value.denominator], lambda parts: Fraction(*parts)),
    "decimal": (Decimal, lambda value: [str(value)], lambda parts: Decimal(*parts)),
    "uuid": (UUID, lambda value: [str(value)], lambda parts: UUID(*parts)),
    "datetime": (
        datetime.datetime,
        lambda value: [value.isoformat(), value.fold],
        lambda parts: datetime.datetime.fromisoformat(parts[0]).replace(fold=parts[1]),
    ),
    "date": (datetime.date, lambda value: [value.isoformat()], lambda parts: datetime.date.fromisoformat(*parts)),
    "time": (datetime.time, lambda value: [value.isoformat()], lambda parts: datetime.time.fromisoformat(*parts)),
    "path": (Path, lambda value: [str(value)], lambda parts: Path(*parts)),
    "timezone": (
        datetime.timezone,
        lambda value: [value.utcoffset(None), str(value)],
        lambda parts: datetime.timezone(*parts) if parts[0] else datetime.UTC,
    ),
    "timedelta": (
        datetime.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: datetime.timedelta(*parts),
    ),
}

#: Kind -> (type, how an empty one is made from what `_parts` says besides its items).
_CHANGING: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "list": (list, lambda _: []),
    "set": (set, lambda _: set()),
    "deque": (deque, lambda maxlen: deque(maxlen=maxlen)),
    "bytearray": (bytearray, lambda _: bytearray()),
    "Counter": (Counter, lambda _: Counter()),
    "OrderedDict": (OrderedDict, lambda _: OrderedDict()),
    "defaultdict": (defaultdict, lambda factory: defaultdict(factory)),
    "dict": (dict, lambda _: {}),
}

_CONSTANTS: dict[str, Any] = {"Ellipsis": ..., "NotImplemented": NotImplemented}
_KIND_OF: dict[type, str] = {of: kind for kind, (of, *_) in {**_FIXED, **_CHANGING}.items()}
_KIND_OF |= {type(Path()): "path"}
_KIND_OF |= {type({}.keys()): "keys", type({}.items()): "items", type({}.values()): "values"}


class Writer:
    """Writes one message of values. `cells` are the containers that it contains, in the order of their numbers.

    Args:
        other: Returns the JSON of a value that is not plain, or raises `NotPlainError`.
        known: Containers that both sides have already numbered.
    """

    def __init__(self, other: Callable[[Any], Any], known: Sequence[Any] = ()) -> None:
        self._other, self._known = other, len(known)
        self.objects = list(known)
        self._number = {id(item): number for number, item in enumerate(known)}

    def value(self, value: Any, depth: int = 0) -> Any:
        """A value as JSON."""
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if value.bit_length() < 64 else {"int": hex(value)}  # JSON has a limit of digits
        if kind is float:
            return value if math.isfinite(value) else {"float": value.hex()}
        name = _KIND_OF.get(kind)
        if name is None:
            return self._rare(value, depth)
        if name in _CHANGING:
            return {"ref": self._numbered(value)}
        if depth > _DEPTH:
            raise TooMuchError("nested too deeply")
        return {name: [self.value(part, depth + 1) for part in _FIXED[name][1](value)]}

    def cells(self) -> list[Any]:
        """The containers in the message that were not known before, including nested ones."""
        found: list[Any] = []
        while self._known + len(found) < len(self.objects):  # what is met meanwhile comes later
            found.append(self.cell(self.objects[self._known + len(found)]))
        return found

    def cell(self, item: Any) -> Any:
        """One mutable container: [kind, further constructor data, its items]."""
        kind = _KIND_OF[type(item)]
        if kind == "bytearray":
            return [kind, None, item.hex()]
        extra = {"deque": "maxlen", "defaultdict": "default_factory"}.get(kind)
        items = [[self.value(key), self.value(part)] for key, part in item.items()] if isinstance(item, dict) else None
        return [kind, self.value(getattr(item, extra)) if extra else None, items or [self.value(part) for part in item]]

    def _numbered(self, value: Any) -> int:
        number = self._number.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return number

    def _rare(self, value: Any, depth: int) -> Any:
        for name, constant in _CONSTANTS.items():
            if value is constant:
                return {"constant": name}
        if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
            return {"type": value.__name__}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            parts = [self.value(part, depth + 1) for part in value]
            return {"namedtuple": [type(value).__name__, list(value._fields), parts]}  # type: ignore[attr-defined]
        base = plain_base(value)
        return self._other(value) if base is value else self.value(base, depth)


def plain_base(value: Any) -> Any:
    """The plain value of an object whose class is derived from a plain one; the object itself otherwise."""
    if isinstance(value, (KeysView, ItemsView, ValuesView)):
        return dict(value).items() if isinstance(value, ItemsView) else _view(value)
    for kind in type(value).__mro__[:-1]:
        if kind is str:
            return str.__str__(value)
        if kind in (int, float, tuple, frozenset, list, set, bytes, bytearray, complex):
            return kind(value)
        if kind in (Counter, OrderedDict, dict):
            return kind(kind.items(value))
        if kind in _KIND_OF and kind not in (slice, range):
            return _copied(kind, value)
    return value


def _view(value: Any) -> Any:
    return dict.fromkeys(value).keys() if isinstance(value, KeysView) else dict(enumerate(value)).values()


def _copied(kind: Any, value: Any) -> Any:
    if kind is defaultdict:
        return defaultdict(value.default_factory, value.items())
    if kind is deque:
        return deque(value, value.maxlen)
    name = _KIND_OF[kind]
    return _FIXED[name][2](_FIXED[name][1](value))


class Reader:
    """Reads the values of one message. Raises `ValueError`, `TypeError` or `LookupError` for what `Writer` does not
    write.

    Args:
        other: Returns the value for the (kind, JSON) of a value that is not plain.
        known: Containers that both sides have already numbered.
    """

    def __init__(self, cells: list[Any], other: Callable[[str, Any], Any], known: Sequence[Any] = ()) -> None:
        self._other = other
        self.objects = list(known)
        self.objects += [_CHANGING[kind][1](None if extra is None else self.value(extra)) for kind, extra, _ in cells]
        for item, cell in zip(self.objects[len(known) :], cells, strict=True):
            self._fill(item, cell)

    def value(self, data: Any) -> Any:
        """The value that `Writer.value` was given."""
        if data is None or isinstance(data, (bool, str, int, float)):
            return data
        ((kind, inner),) = data.items()
        if kind == "ref":
            return self.objects[inner]
        if kind in _FIXED:
            return _FIXED[kind][2]([self.value(part) for part in inner])
        match kind:
            case "int":
                return int(inner, 16)
            case "float":
                return float.fromhex(inner)
            case "constant":
                return _CONSTANTS[inner]
            case "type":
                return _type(inner)
            case "namedtuple":
                name, fields, parts = inner
                return namedtuple(name, fields)(*map(self.value, parts))
        return self._other(kind, inner)

    def change(self, item: Any, cell: Any) -> None:
        """Gives a container the content that it has on the other side."""
        if cell[0] != _KIND_OF[type(item)]:
            raise TypeError("a container of another kind")
        item.clear()
        self._fill(item, cell)

    def _fill(self, item: Any, cell: Any) -> None:
        kind, _, items = cell
        if kind == "bytearray":
            item.extend(bytes.fromhex(items))
        elif isinstance(item, dict):
            for key, part in items:
                item[self.value(key)] = self.value(part)
        elif isinstance(item, set):
            item.update(map(self.value, items))
        else:
            item.extend(map(self.value, items))


def _type(name: str) -> type:
    found = getattr(builtins, name)
    if not isinstance(found, type) or name.startswith("_"):
        raise TypeError(f"{name} is no type")
    return found


def same(one: Any, two: Any) -> bool:
    """True if two pieces of JSON are identical. True and 1.0 equal 1 in Python but are not identical to it."""
    return json.dumps(one) == json.dumps(two)
