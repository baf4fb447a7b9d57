"""How the two sides of a code test (`code_process`) call each other. Plain values are copied; anything else is a
`Handle` on an object that stays on its side. A change that one side makes to a container is repeated on the other side.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from multiprocessing.connection import Connection
from typing import Any

from lnlit.rewards.code_handle import ACTIONS, Ahead, Handle, peer_of, target_of
from lnlit.rewards.code_values import Reader, TooMuchError, Writer, same

_MESSAGE_BYTES = 64 * 2**20

#: Exceptions that only their own caller may see.
_ENDINGS = (StopIteration, StopAsyncIteration, GeneratorExit)


class BrokenOffError(BaseException):
    """The other side is gone or sent something that is not an answer."""


def pack(message: Any) -> bytes:
    """A message as bytes. Raises `TooMuchError` if it is too long."""
    data = json.dumps(message).encode()
    if len(data) > _MESSAGE_BYTES:
        raise TooMuchError(f"more than {_MESSAGE_BYTES >> 20} MiB of data")
    return data


def _python_modules() -> set[str]:
    """The modules whose exceptions count as Python's own. unittest is not included, because its exceptions can skip a
    test."""
    mine = sys.stdlib_module_names - {"unittest", "__main__"}
    return {name for name in sys.modules if name.partition(".")[0] in mine}


def kinds_of(error: type) -> list[str]:
    """The qualified names of an exception's class and of its bases, the nearest first."""
    return [f"{kind.__module__}.{kind.__name__}" for kind in error.__mro__]


class Line(Connection):
    """Messages over a socket. `EOFError`, `OSError`: the other side is gone, or says too much."""

    def receive(self) -> Any:
        return json.loads(self.recv_bytes(_MESSAGE_BYTES))


class Peer:
    """One side of the connection. This class holds what both sides do; subclasses define what they lend and allow.

    Args:
        line: The connection to the other side.
    """

    #: True if an object of the other side decides about itself in everything, including comparisons.
    trusting = False

    def __init__(self, line: Line) -> None:
        self.line = line
        self.questions = 0
        #: The reason why the connection is of no more use, even if the exception was caught.
        self.trouble: BaseException | None = None
        #: Items of the other side's iterators that were fetched ahead.
        self.ahead: dict[Any, Ahead] = {}
        self._ours: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._handles: dict[Any, Handle] = {}
        self._late: dict[int, Exception] = {}

    # What the sides say

    def offer(self, value: Any) -> Any:
        """The JSON of a value that is not plain: `lend`, or raises `NotPlainError`."""
        return self.lend(value)

    def given(self, kind: str, inner: Any) -> Any:
        """The value for something that the other side's `offer` made and that is not lent."""
        raise TypeError(f"no kind of value: {kind}")

    def allow(self, do: str, args: list[Any]) -> None:
        """Raises an exception if the other side may not do this."""

    def named(self, name: str) -> Any:
        """The object that the other side refers to by a name."""
        raise NameError(f"name {name!r} is not defined")

    def called(self, function: Any, /, *args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    def exception(self, kind: str) -> Any:
        """This side's class for the exception class of that name, or None."""
        place, _, name = kind.rpartition(".")
        found = getattr(sys.modules.get(place), name, None) if place in _python_modules() else None
        return found if isinstance(found, type) and issubclass(found, (Exception, SystemExit)) else None

    def refuse(self, why: str) -> Any:
        """Raises an exception for something that cannot be done from the other side."""
        raise TypeError(why)

    def printed(self) -> list[str]:
        """The text printed on this side since the last call, to standard output and to standard error."""
        return ["", ""]

    def hear(self, texts: list[str]) -> None:
        """Called with the text printed on the other side."""

    # Calls

    def lend(self, value: Any) -> Any:
        """The JSON of an object that stays on this side."""
        number = self._numbers.setdefault(id(value), len(self._ours))
        if number == len(self._ours):
            self._ours.append(value)
        return {"theirs": [number, isinstance(value, Coroutine)]}

    def handle(self, target: Any, made: bool = False) -> Handle:
        """The handle on an object of the other side, given by number or name; always the same one."""
        made = made or self.trusting
        return self._handles.setdefault((target, made), Handle(self, target, made))

    def ask(self, do: str, *args: Any, **keywords: Any) -> Any:
        """Makes the other side do something. Raises what it raises there, or `BrokenOffError` if there is no answer."""
        self.questions += 1
        writer = Writer(self._written)
        packed = self.packed(writer, do, args, keywords)
        try:
            self.line.send_bytes(packed)
            while "do" in (reply := self.line.receive()):  # it asks something first
                self.line.send_bytes(self.answer(reply))
            reader = Reader(reply["cells"], self._read, writer.objects)
            value = reader.value(reply["value"])
            raised = None if reply["raised"] is None else self._exception(reply["raised"], reader.value)
            for number, cell in reply["changed"]:
                reader.change(writer.objects[number], cell)
            self.hear([str(text) for text in reply["printed"]])
        except Exception as error:  # whatever it is, it was not an answer
            self.trouble = BrokenOffError("gave no value")
            raise self.trouble from error
        if isinstance(raised, _ENDINGS) and do not in ("next", "anext"):
            raise RuntimeError(f"raised {raised!r}")
        if raised is not None:
            raise raised
        return value

    def packed(self, writer: Writer, do: str, args: Sequence[Any], keywords: dict[str, Any]) -> bytes:
        """A question as bytes."""
        written = {"do": do, "args": [writer.value(arg) for arg in args]}
        written["keywords"] = {key: writer.value(item) for key, item in keywords.items()}
        return pack({**written, "cells": writer.cells(), "printed": self.printed()})

    def answer(self, question: Any) -> bytes:
        """Does what the other side asks for, and returns the reply as bytes."""
        cells = question["cells"]
        reader = Reader(cells, self._read)
        self.hear([str(text) for text in question["printed"]])
        try:
            args = [reader.value(arg) for arg in question["args"]]
            keywords = {str(key): reader.value(item) for key, item in question["keywords"].items()}
            self.allow(question["do"], args)
            writer = Writer(self._written, reader.objects)
            return self._reply(writer, cells, writer.value(self._done(question["do"], args, keywords)), None)
        except (Exception, SystemExit) as error:
            return self._reply(*self._told(error, reader.objects, cells))

    def _reply(self, writer: Writer, before: list[Any], value: Any, told: Any) -> bytes:
        after = [(number, writer.cell(writer.objects[number])) for number in range(len(before))]
        changed = [[number, cell] for number, cell in after if not same(cell, before[number])]
        reply = {"value": value, "raised": told, "changed": changed, "cells": writer.cells()}
        return pack({**reply, "printed": self.printed()})

    def _told(self, error: BaseException, objects: list[Any], before: list[Any]) -> tuple[Writer, Any, None, Any]:
        """The reply for an exception: the names of its types (the nearest first), its text, and its attributes as far
        as they can be sent."""
        told: dict[str, Any] = {"kinds": kinds_of(type(error)), "says": ""}
        with contextlib.suppress(Exception):
            told["says"] = str(error)
        for args, attributes in ((error.args, vars(error)), ((), {})):
            writer = Writer(self._written, objects)
            with contextlib.suppress(Exception):
                told["holds"] = [writer.value(arg) for arg in args]
                told["vars"] = {key: writer.value(item) for key, item in attributes.items()}
                writer.cells()
                break
        return writer, before, None, told

    def _exception(self, told: Any, read: Callable[[Any], Any]) -> BaseException:
        """An exception of the nearest class that this side knows, with the same text if it can have that."""
        for name in told["kinds"]:
            kind, made = self.exception(name), []
            holds = [read(item) for item in told["holds"]]
            for arguments in (holds, [told["says"]], []) if kind else ():
                with contextlib.suppress(Exception):  # some need arguments of their own
                    made.append(kind(*arguments))
            if kind and not made:
                with contextlib.suppress(Exception):  # and a group of exceptions some of them
                    made.append(kind.__new__(kind, *holds))
            if made:
                found = next((error for error in made if str(error) == told["says"]), made[0])
                for key, item in told["vars"].items():
                    with contextlib.suppress(Exception):
                        setattr(found, key, read(item))
                return found
        raise ValueError("no exception of Python's own")

    def _done(self, do: str, args: list[Any], keywords: dict[str, Any]) -> Any:
        if do == "next":
            return self._next(*args)
        return self.called(*args, **keywords) if do == "call" else ACTIONS[do](*args)

    def _next(self, iterator: Any, count: int) -> list[Any]:
        """As many items as asked for, or fewer if the iterator ends or fails after them, which is reported the next
        time."""
        if id(iterator) in self._late:
            raise self._late.pop(id(iterator))
        found: list[Any] = []
        try:
            while len(found) < count:
                found.append(next(iterator))
        except Exception as error:
            if not found:
                raise
            self._late[id(iterator)] = error
        return found

    def _written(self, value: Any) -> Any:
        if isinstance(value, Handle):
            return {"yours": target_of(value)}
        return self.lend(value.value) if isinstance(value, Made) else self.offer(value)

    def _read(self, kind: str, inner: Any) -> Any:
        if kind == "theirs":
            handle = self.handle(int(inner[0]))
            return _awaited(handle) if inner[1] else handle
        if kind == "yours":
            return self.named(inner) if isinstance(inner, str) else self._ours[inner]
        return self.given(kind, inner)


class Made:
    """An object that is lent although its class is derived from a plain one."""

    def __init__(self, value: Any) -> None:
        self.value = value


async def _awaited(handle: Handle) -> Any:
    return peer_of(handle).ask("await", handle)
