"""Stand-ins on one side of a code test for objects on the other (`code_calls`)."""

from __future__ import annotations

import builtins
import copy
import io
import operator
import random
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from lnlit.rewards.code_values import NotPlainError, Writer, plain_base

#: `code_calls.Peer`, who can ask the other side, and imports this file.
Peer = Any

_AHEAD, _SINGLY = 1024, 8


def _await(awaitable: Any) -> Any:
    """The result of an awaitable. If an event loop is already running in this thread, the awaitable is stepped without
    it, and fails if it waits for something, such as a timer."""
    import asyncio

    async def awaited() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _loop().run_until_complete(awaited())
    coroutine = awaited()
    while True:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value


@cache
def _loop() -> Any:
    """One event loop for everything that is awaited, because unfinished objects such as generators end with their
    loop."""
    import asyncio

    return asyncio.new_event_loop()


def _plain(value: Any) -> Any:
    """The plain value of an object, for comparisons. Raises `TypeError` if it has none."""
    base = plain_base(value)
    Writer(_not_plain).value(base)
    return base


def _not_plain(value: Any) -> Any:
    raise NotPlainError(f"{type(value).__name__} is not plain data")


#: Operators of two operands, by the name of their method.
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, f"__{name}__")
    for name in (
        *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor"),
        *("lt", "le", "gt", "ge", "eq", "ne", "contains"),
    )
}
_NOT_REFLECTED = {"lt", "le", "gt", "ge", "eq", "ne", "contains"}

#: Operations whose result depends on the object only.
_UNARY: dict[str, Callable[..., Any]] = {
    name: getattr(builtins, name) for name in ("len", "iter", "str", "repr", "bool", "int", "float", "complex", "bytes")
} | {"hash": hash, "abs": abs, "round": round, "reversed": reversed, "format": format, "index": operator.index}
_UNARY |= {name: getattr(operator, name) for name in ("neg", "pos", "invert", "getitem", "setitem", "delitem")}
_UNARY |= {"enter": lambda held: type(held).__enter__(held)}

#: Operators that change the object in place if it supports that.
_IN_PLACE = ("iadd", "isub", "imul", "iand", "ior", "ixor")

ACTIONS: dict[str, Callable[..., Any]] = {
    **_BINARY,
    **_UNARY,
    **{name: getattr(operator, name) for name in _IN_PLACE},
    "exit": lambda held, *args: type(held).__exit__(held, *args),
    "get": getattr,
    "set": setattr,
    "delete": delattr,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "plain": _plain,
    "await": _await,
    "aiter": aiter,
    "anext": lambda held: _await(anext(held)),
    "aenter": lambda held: _await(type(held).__aenter__(held)),
    "aexit": lambda held, *args: _await(type(held).__aexit__(held, *args)),
    "seed": lambda *args: random.seed(*args),
    "input": lambda prompt: input(prompt),
    "readline": lambda size: sys.stdin.readline(size),
    "read": lambda size: sys.stdin.read(size),
}


class Handle:
    """A stand-in for an object on the other side, where all operations are carried out, with one exception: comparisons
    with values of this side. An object derived from a plain value is compared by that value, and any other object
    equals no value, unless it is of a class that the tests test (`made`)."""

    __slots__ = ("__made", "__makes", "__peer", "__target")
    __hash__: Any
    __iter__: Any

    def __init__(self, peer: Peer, target: Any, made: bool, makes: bool = False) -> None:
        for name, value in {"peer": peer, "target": target, "made": made, "makes": makes}.items():
            object.__setattr__(self, f"_Handle__{name}", value)

    def __getattr__(self, name: str) -> Any:
        if name in _VERDICTS and not self.__made:
            raise AttributeError(f"{name} of what is no plain value")
        return self.__peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__peer.ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self.__peer.ask("delete", self, name)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return _kept(self.__peer.ask("call", self, *args, **keywords), self.__makes)

    def __next__(self) -> Any:
        return self.__peer.ahead.setdefault(self.__target, Ahead(self)).next()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        return self.__peer.ask("exit", self, kind, None, None)

    def __aiter__(self) -> Any:
        return self.__peer.ask("aiter", self)

    async def __anext__(self) -> Any:
        return self.__peer.ask("anext", self)

    async def __aenter__(self) -> Any:
        return self.__peer.ask("aenter", self)

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> Any:
        return self.__peer.ask("aexit", self, kind, None, None)

    def __copy__(self) -> Any:
        return _kept(self.__peer.ask("copy", self), self.__made)

    def __deepcopy__(self, memo: Any) -> Any:
        return _kept(self.__peer.ask("deepcopy", self), self.__made)

    def __mro_entries__(self, bases: Any) -> Any:
        return self.__peer.refuse("a class cannot be derived from one that lives elsewhere")

    def __instancecheck__(self, item: Any) -> bool:
        return isinstance(item, Handle) and self.__peer.ask("isinstance", item, self) is True

    def __subclasscheck__(self, item: Any) -> bool:
        return isinstance(item, Handle) and self.__peer.ask("issubclass", item, self) is True

    def _with(self, name: str, other: Any) -> Any:
        """A binary operator with this side's value on the right."""
        if isinstance(other, Handle) or self.__made:
            return _kept(self.__peer.ask(name, self, other), self.__made)
        if name == "contains":
            return any(item is other or item == other for item in self)
        try:
            plain = self.__peer.ask("plain", self)
        except TypeError:
            return {"eq": False, "ne": True}.get(name, NotImplemented)
        return _BINARY[name](plain, other)

    def _in_place(self, name: str, other: Any) -> Any:
        if not self.__made:
            return NotImplemented
        return _kept(self.__peer.ask(name, self, other), True)

    def _after(self, name: str, other: Any) -> Any:
        """A binary operator with this side's value on the left."""
        if self.__made:
            return _kept(self.__peer.ask(name, other, self), True)
        try:
            return _BINARY[name](other, self.__peer.ask("plain", self))
        except TypeError:
            return NotImplemented


class Ahead:
    """The items of an iterator on the other side. More are fetched at once as long as nothing else is asked in
    between."""

    def __init__(self, handle: Handle) -> None:
        self._peer, self._handle = peer_of(handle), handle
        self._items: list[Any] = []
        self._alone, self._asked = 0, -1

    def next(self) -> Any:
        if not self._items:
            self._alone = self._alone + 1 if self._peer.questions == self._asked else 0
            count = min(2 ** max(self._alone - _SINGLY, 0), _AHEAD) if not self._peer.trusting else 1
            self._items = list(reversed(self._peer.ask("next", self._handle, count)))
            self._asked = self._peer.questions
        return self._items.pop()


#: Methods of plain values that would let an object say whether it is what the tests expect.
_VERDICTS = {"startswith", "endswith", "find", "rfind", "issubset", "issuperset", "isdisjoint"}


def peer_of(handle: Handle) -> Peer:
    return object.__getattribute__(handle, "_Handle__peer")


def target_of(handle: Handle) -> Any:
    return object.__getattribute__(handle, "_Handle__target")


def _kept(value: Any, made: bool) -> Any:
    return peer_of(value).handle(target_of(value), made) if made and isinstance(value, Handle) else value


def _forwarding(name: str) -> Callable[..., Any]:
    return lambda self, *args: peer_of(self).ask(name, self, *args)


for _name in _BINARY:
    setattr(Handle, f"__{_name}__", lambda self, other, _name=_name: self._with(_name, other))
    if _name not in _NOT_REFLECTED:
        setattr(Handle, f"__r{_name}__", lambda self, other, _name=_name: self._after(_name, other))
for _name in _UNARY:
    setattr(Handle, f"__{_name}__", _forwarding(_name))
setattr(Handle, "__doc__", property(lambda self: peer_of(self).ask("get", self, "__doc__")))  # noqa: B010  not its own
for _name in _IN_PLACE:
    setattr(Handle, f"__{_name}__", lambda self, other, _name=_name: self._in_place(_name, other))


class Asked(io.TextIOBase):
    """Standard input whose content is on the other side."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def read(self, size: int | None = -1) -> str:
        return self._peer.ask("read", -1 if size is None else size)

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        return self._peer.ask("readline", -1 if size is None else size)
