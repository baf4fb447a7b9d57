"""One side of a code test as its own program: `python -I -S code_process.py`, with its job as JSON on standard input.

The candidate's side runs untrusted code and answers calls of its functions. The judge's side runs the tests and makes
the calls. Plain values are copied between them, and anything else stays on its side and is referred to by a handle
(`code_calls`). So a candidate can only return values, as honest code does: the tests, the verdict and the comparison
operators are out of its reach.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib
import inspect
import io
import json
import operator
import os
import random
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

if __name__ == "__main__":  # lnlit's files are found, but what it imports as a whole is not needed here
    _lnlit = sys.modules["lnlit"] = types.ModuleType("lnlit")
    _lnlit.__path__ = [str(Path(__file__).parents[1])]

from lnlit.rewards.code_calls import BrokenOffError, Line, Made, Peer, TooMuchError, kinds_of, pack
from lnlit.rewards.code_handle import ACTIONS, Asked, Handle
from lnlit.rewards.code_tree import SOLUTION, exceptions, imports, tested_classes, unknown_names
from lnlit.rewards.code_values import NotPlainError, Reader, Writer
from lnlit.rewards.code_walls import close_calls, close_files, die_with, enter_namespaces, give_up_rights


def _module(name: str) -> dict[str, Any]:
    """The namespace of a new module, in which `dataclass` and similar decorators look names up."""
    module = sys.modules[name] = types.ModuleType(name)
    return vars(module)


class Candidate(Peer):
    """The untrusted side. It asks the tests' side for standard input, and sends it what is printed."""

    trusting = True

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.names = _module(SOLUTION)
        self._prints = [io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogatepass") for _ in range(2)]
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = self._prints

    def serve(self, job: dict[str, Any]) -> None:
        """Runs the candidate's code, then answers calls of what it defined."""
        self.line.send_bytes(pack("ready"))
        for code in (job["preamble"], job["code"]):
            exec(compile(code, "<solution>", "exec"), self.names)
        self.printed()
        sys.stdin, builtins.input = Asked(self), lambda prompt="", /: self.ask("input", prompt)
        errors = {name: kinds_of(value) for name, value in self.names.items() if _is_error(value)}
        self.line.send_bytes(pack({"loaded": errors}))
        while True:
            self.line.send_bytes(self.answer(self.line.receive()))

    def named(self, name: str) -> Any:
        return self.names[name] if name in self.names else super().named(name)

    def called(self, function: Any, /, *args: Any, **keywords: Any) -> Any:
        made = function(*args, **keywords)
        return Made(made) if isinstance(function, type) and function.__module__ == SOLUTION else made

    def given(self, kind: str, inner: Any) -> Any:
        (place, name), args = inner
        found: Any = importlib.import_module(place)
        found = operator.attrgetter(name)(found) if name else found
        return found if args is None else found(*Reader([], self._read).value(args))

    def printed(self) -> list[str]:
        texts: list[str] = []
        for stream in self._prints:
            stream.flush()
            buffer: Any = stream.buffer
            texts.append(buffer.getvalue().decode("utf-8", "surrogatepass"))
            buffer.seek(0)
            buffer.truncate()
        return texts


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


class Solution(types.ModuleType):
    """The module that tests import when they ask for the candidate's module by name."""

    def __init__(self, handle: Callable[[str], Any]) -> None:
        super().__init__(SOLUTION)
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._handle(name)


class UnsuitableError(BaseException):
    """The row's tests cannot be run in this way, whatever the candidate is."""


#: What nothing can be changed about -> how it is made. Then what may be changed, and what is only called.
_MADE: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    re.Pattern: lambda value: (re.compile, (value.pattern, value.flags)),
    PurePath: lambda value: (type(value), (str(value),)),
    BaseException: lambda value: (type(value), value.args),
    **dict.fromkeys(
        (operator.itemgetter, operator.attrgetter, operator.methodcaller), lambda value: value.__reduce__()[:2]
    ),
}
_LENT = (io.IOBase, random.Random)
_CALLABLE = (types.FunctionType, types.MethodType, types.BuiltinMethodType, types.MethodWrapperType, functools.partial)
_OURS = {"tests", "unittest.mock"}


class Judge(Peer):
    """The tests' side. Objects that it lends may be called or iterated over; only those of the tests' own classes show
    more."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.exceptions: dict[str, type] = {}
        self._may: dict[int, set[str]] = {}

    def lend_for(self, value: Any, may: set[str]) -> Any:
        self._may[id(value)] = may
        return self.lend(value)

    def offer(self, value: Any) -> Any:
        if found := _by_name(value):
            return {"made": [found, None]}
        if isinstance(value, _LENT) or type(value).__module__ in _OURS:
            return self.lend_for(value, {*ACTIONS, "call", "next"})
        if isinstance(value, _CALLABLE) or (isinstance(value, type) and value.__module__ in _OURS):
            return self.lend_for(value, {"call"})
        if isinstance(value, Iterator):
            return self.lend_for(value, {"iter", "next"})
        if inspect.iscoroutine(value):
            return self.lend_for(value, {"await"})
        for kind, how in _MADE.items():
            if isinstance(value, kind):
                maker, args = how(value)
                if found := _by_name(maker):
                    return {"made": [found, Writer(self._written).value(tuple(args))]}
        raise NotPlainError(f"a {type(value).__name__}")

    def allow(self, do: str, args: list[Any]) -> None:
        if do in ("input", "read", "readline"):
            return
        may = self._may.get(id(args[0]), set())
        if do == "get" and "next" in may and args[1] in ("send", "throw", "close"):
            return
        if do in ("get", "set", "delete"):
            if do == "get" and "call" in may and args[1] in ("__name__", "__qualname__", "__doc__"):
                return
            name, fixed = args[1], callable(getattr(type(args[0]), str(args[1]), None))
            if do not in may or type(name) is not str or name.startswith("_") or (fixed and do != "get"):
                raise AttributeError(f"{name!r} of what the tests hand over")
        elif do not in may:
            raise TypeError(f"{do} of what the tests hand over")

    def exception(self, kind: str) -> Any:
        return self.exceptions.get(kind.rpartition(".")[2]) or super().exception(kind)

    def define(self, names: set[str], told: dict[str, list[str]]) -> None:
        """Defines the candidate's exceptions that the tests name, as subclasses of the nearest base known on this
        side."""
        for name in sorted(names, key=lambda name: len(told.get(name, []))):  # bases first
            base = next(filter(None, map(self.exception, told.get(name, [])[1:])), Exception)
            base = base if issubclass(base, Exception) else Exception
            self.exceptions[name] = type(name, (base,), {"__module__": "tests", "__str__": Exception.__str__})

    def packed(self, writer: Writer, do: str, args: Any, keywords: dict[str, Any]) -> bytes:
        try:
            return super().packed(writer, do, args, keywords)
        except NotPlainError as error:
            self.trouble = UnsuitableError(f"they hand over what cannot leave their process: {error}")
        except (TooMuchError, MemoryError) as error:
            if self.questions > 1:  # what the candidate gave before may be in it
                self.trouble = BrokenOffError("gave too much to be handed over")
            else:
                self.trouble = UnsuitableError(f"they hand over too much: {error or 'out of memory'}")
        raise self.trouble

    def refuse(self, why: str) -> Any:
        self.trouble = UnsuitableError(why)
        raise self.trouble

    def hear(self, texts: list[str]) -> None:
        for stream, text in zip((sys.stdout, sys.stderr), texts, strict=True):
            with contextlib.suppress(UnicodeError):  # where nobody listens
                if text:
                    stream.write(text)


def _by_name(value: Any) -> list[Any] | None:
    """The place where a function, class or module of Python's own is found on either side."""
    if isinstance(value, types.ModuleType):
        return [value.__name__, None] if value.__name__.partition(".")[0] in sys.stdlib_module_names else None
    module = getattr(getattr(value, "__objclass__", value), "__module__", None)
    name = getattr(value, "__qualname__", None)
    if not isinstance(module, str) or module.partition(".")[0] not in sys.stdlib_module_names or module == "__main__":
        return None
    try:
        return [module, name] if operator.attrgetter(str(name))(sys.modules[module]) is value else None
    except (AttributeError, KeyError):
        return None


def _share_seeds(peer: Judge) -> None:
    """Seeds the candidate's random numbers whenever the tests seed theirs."""
    own = random.seed

    def seed(a: Any = None, version: int = 2) -> None:
        own(a, version)
        peer.ask("seed", a, version)
        peer.questions -= 1  # it was asked nothing that it could fail

    random.seed = seed


_HINT = "a function with a name of Python's own must be the row's entry_point"


def judge(job: dict[str, Any], line: Line, verdict: int) -> None:
    """Runs the tests against the candidate. Writes "tests" when they can begin and "passed" when all have passed, or
    "unsuitable" with the reason."""
    peer = Judge(line)
    try:
        names, tests = _prepared(job, peer)
    except Exception as error:
        os.write(verdict, f"unsuitable: {type(error).__name__}: {error}"[:500].encode())
        return
    if line.receive() != "ready":
        return
    os.write(verdict, b"tests\n")
    handles = {name for name, value in names.items() if isinstance(value, Handle)}
    peer.define(exceptions(ast.parse(job["tests"])) & handles, line.receive()["loaded"])
    names.update(peer.exceptions)
    problem: BaseException | None = None
    try:
        try:
            exec(tests, names)
        except SystemExit:  # as `unittest.main` does, though it finds none here
            if peer.questions:
                return
        _run(names, job["entry_point"], peer)
    except (Exception, UnsuitableError, BrokenOffError) as error:
        problem = error
    problem = peer.trouble or problem
    if problem is None and not peer.questions:
        problem = UnsuitableError(f"they never call the candidate; {_HINT}")
    elif isinstance(problem, Exception) and not peer.questions:  # so no candidate is to blame
        said = f"they fail before they call the candidate, {type(problem).__name__}: {problem}"
        problem = UnsuitableError(f"{said:.300}; {_HINT}")
    if problem is None:
        os.write(verdict, b"passed\n")
    elif isinstance(problem, UnsuitableError):
        os.write(verdict, f"unsuitable: {problem}"[:500].encode(errors="replace"))


def _prepared(job: dict[str, Any], peer: Judge) -> tuple[dict[str, Any], Any]:
    """(the names that the tests see, including the candidate's, and the compiled tests)."""
    names = _module("tests")
    exec(compile(job["preamble"], "<preamble>", "exec"), names)  # its helpers here: the candidate may not replace them
    tests = ast.parse(job["tests"])
    makes = tested_classes(tests)
    if "random" in imports(tests):
        _share_seeds(peer)
    sys.modules[SOLUTION] = Solution(
        lambda name: peer.exceptions.get(name) or Handle(peer, name, made=False, makes=name in makes)
    )
    for name in unknown_names(tests) - names.keys():
        names[name] = getattr(sys.modules[SOLUTION], name)
    for name in unknown_names(ast.parse(job["entry_point"] or "", mode="exec"), with_builtins=True):
        names[name] = Handle(peer, name, made=False)
    return names, compile(tests, "<tests>", "exec")


def _run(names: dict[str, Any], entry_point: str | None, peer: Judge) -> None:
    """Runs what the tests have only defined: `check` with the candidate, or else unittest's cases and functions with
    names of tests."""
    if entry_point and callable(names.get("check")) and not isinstance(names["check"], Handle):
        names["check"](eval(entry_point, names))
    for name, test in list(names.items()) if not peer.questions else ():
        if isinstance(test, type) and issubclass(test, getattr(sys.modules.get("unittest"), "TestCase", ())):
            _run_cases(test)
        elif not name.lower().startswith("test"):
            continue
        elif isinstance(test, types.FunctionType) and not inspect.signature(test).parameters:
            test()


def _run_cases(of: type) -> None:
    import unittest

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(of).run(result)
    assert result.wasSuccessful(), [text for _, text in (*result.failures, *result.errors)]


def main() -> None:
    job = json.load(sys.stdin)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    die_with(job["parent"])
    if job["isolation"] == "namespaces":
        enter_namespaces(job["folder"])
        os.chdir("/tmp")
        closed = False
    else:
        os.chdir(job["folder"])
        closed = close_files(job["folder"])
    give_up_rights(job["cpu_s"], job["memory"], closed)
    die_with(0 if job["isolation"] == "namespaces" else job["parent"])  # a change of user had cleared it
    close_calls()
    with contextlib.suppress(BrokenOffError, EOFError):
        if job["side"] == "candidate":
            Candidate(Line(job["line"])).serve(job)
        elif job["side"] == "judge":
            judge(job, Line(job["line"]), job["verdict"])


if __name__ == "__main__":
    main()
