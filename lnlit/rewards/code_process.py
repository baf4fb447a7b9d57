"""One side of a code test, as a program of its own: `python -I -S code_process.py`, its job as JSON on standard input.

The candidate's side runs code that nobody trusts and answers calls of its functions. The judge's side runs the tests
and calls. Only plain values cross between them, so all that a candidate can do is give values, as honest code does: the
tests, the verdict and the comparison operators are out of its reach. This file imports nothing of lnlit.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
import types
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from pathlib import Path
from typing import Any

_MESSAGE_BYTES, _DEPTH = 64 * 2**20, 50
_NOBODY = 65534
# Linux numbers, the same on every processor but for the system call, which is new enough to be.
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_NO_SUID, _NO_DEVICES = 2, 4
_MOUNT_SETATTR, _AT_RECURSIVE, _READ_ONLY = 442, 0x8000, 1
_DIE_WITH_PARENT, _SET_DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38


# Plain values


class NotPlainError(TypeError):
    """A value of a kind that cannot cross, such as an object with methods."""


class TooMuchError(TypeError):
    """More data than may cross, or nested deeper."""


#: Kind -> what is of it, and how to make it again. Views of a dictionary stay views: they compare as views do.
_CONTAINERS: dict[str, tuple[Any, Callable[[list[Any]], Any]]] = {
    "list": (list, list),
    "tuple": (tuple, tuple),
    "set": (set, set),
    "frozenset": (frozenset, frozenset),
    "deque": (deque, deque),
    "keys": (KeysView, lambda keys: dict.fromkeys(keys).keys()),
    "items": (ItemsView, lambda items: dict(items).items()),
    "values": (ValuesView, lambda values: dict(enumerate(values)).values()),
    "iter": ((Iterator, range), iter),
}


def encode(value: Any, depth: int = 0) -> Any:
    """A value as JSON. `NotPlainError` or `TooMuchError` for what cannot be."""
    if depth > _DEPTH:
        raise TooMuchError("nested too deeply")
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, int):
        return value if value.bit_length() < 64 else {"int": hex(value)}  # JSON has a limit of digits
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items()]}
    for kind, (of, _) in _CONTAINERS.items():
        if isinstance(value, of):
            return {kind: [encode(item, depth + 1) for item in value]}
    raise NotPlainError(f"{type(value).__name__} is not plain data")


def decode(data: Any) -> Any:
    """The value behind `encode`'s JSON; `ValueError` or `TypeError` for anything else."""
    if data is None or isinstance(data, (bool, str, int, float)):
        return data
    ((kind, inner),) = data.items()
    match kind:
        case "int":
            return int(inner, 16)
        case "float":
            return float.fromhex(inner)
        case "complex":
            return complex(*map(float.fromhex, inner))
        case "bytes":
            return bytes.fromhex(inner)
        case "dict":
            return {decode(key): decode(item) for key, item in inner}
    return _CONTAINERS[kind][1]([decode(item) for item in inner])


def pack(message: Any) -> bytes:
    """A message as it is sent; `TooMuchError` if it is too long."""
    data = json.dumps(message).encode()
    if len(data) > _MESSAGE_BYTES:
        raise TooMuchError(f"more than {_MESSAGE_BYTES >> 20} MiB of data")
    return data


class Line:
    """Length-prefixed JSON messages over a socket. `EOFError`, `OSError`: the other side is gone, or says too much."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self.questions = 0

    def send(self, packed: bytes) -> None:
        self._socket.sendall(struct.pack(">I", len(packed)))
        self._socket.sendall(packed)

    def receive(self) -> Any:
        (size,) = struct.unpack(">I", self._exactly(4))
        if size > _MESSAGE_BYTES:
            raise EOFError
        return json.loads(self._exactly(size))

    def ask(self, packed: bytes) -> Any:
        self.questions += 1
        self.send(packed)
        return self.receive()

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = self._socket.recv_into(rest)
            if not count:
                raise EOFError
            rest = rest[count:]
        return data


# The candidate's side


def serve(job: dict[str, Any], line: Line) -> None:
    """Run the candidate's code, then answer calls of what it defined."""
    line.send(pack("ready"))
    names = _module("solution")
    for code in (job["preamble"], job["code"]):
        exec(compile(code, "<solution>", "exec"), names)
    line.send(pack("loaded"))
    while True:
        call = line.receive()
        try:
            args = [decode(arg) for arg in call["args"]]
            keywords = {key: decode(value) for key, value in call["keywords"].items()}
            if call["name"] not in names:
                raise NameError(f"name {call['name']!r} is not defined")
            value = encode(names[call["name"]](*args, **keywords))
            reply = pack({"value": value, "args": [encode(arg) for arg in args]})  # as the call left them
        except Exception as error:
            reply = pack(_told(error))
        line.send(reply)


def _told(error: Exception) -> dict[str, Any]:
    """An exception as the names of its types, the nearest first, and what it holds and says, where that is plain."""
    told: dict[str, Any] = {"raised": [kind.__name__ for kind in type(error).__mro__], "holds": [], "says": ""}
    with contextlib.suppress(Exception):
        told["says"] = str(error)
        told["holds"] = [encode(arg) for arg in error.args]
    return told


def _module(name: str) -> dict[str, Any]:
    """The names of a new module, in which `dataclass` and its like look things up."""
    module = sys.modules[name] = types.ModuleType(name)
    return vars(module)


# The judge's side


class CandidateError(Exception):
    """The candidate broke off, or gave what is no value or cannot be used as one."""


class UnsuitableError(BaseException):
    """The row's tests cannot be run so, whatever the candidate is."""


_HINT = "a function with a name of Python's own must be the row's entry_point"


class Remote:
    """A function that lives in the candidate's process."""

    def __init__(self, line: Line, name: str) -> None:
        self._line, self._name = line, name

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        try:
            sent = [encode(arg) for arg in args]
            call = {"name": self._name, "args": sent, "keywords": {key: encode(item) for key, item in keywords.items()}}
            packed = pack(call)
        except NotPlainError as error:
            raise UnsuitableError(f"they hand over what cannot leave their process: {error}") from error
        except (TooMuchError, MemoryError) as error:
            if self._line.questions:  # what the candidate gave before may be in it
                raise CandidateError("gave too much to be handed over") from error
            raise UnsuitableError(f"they hand over too much: {error or 'out of memory'}") from error
        try:
            reply = self._line.ask(packed)
            raised = _exception(reply) if "raised" in reply else None
            value, after = (None, []) if raised else (decode(reply["value"]), [decode(arg) for arg in reply["args"]])
        except Exception as error:  # whatever it is, it was not an answer
            raise CandidateError("gave no value") from error
        if raised:
            raise raised
        for arg, new, old, now in zip(args, after, sent, reply["args"], strict=False):
            if json.dumps(old) != json.dumps(now):  # True and 1.0 equal 1, but are not the same
                _write_back(arg, new)
        return value


def _exception(told: dict[str, Any]) -> Exception:
    """The nearest of Python's own exceptions, as tests may expect it, with the same text if it can have that."""
    says = told["says"]
    for name in told["raised"]:
        kind = getattr(builtins, name, None)
        made: list[Exception] = []
        if isinstance(kind, type) and issubclass(kind, Exception):
            for arguments in ([decode(item) for item in told["holds"]], [says], []):
                with contextlib.suppress(Exception):  # some need arguments of their own
                    made.append(kind(*arguments))
        if made:
            return next((error for error in made if str(error) == says), made[0])
    raise ValueError("no exception of Python's own")


def _write_back(arg: Any, new: Any) -> None:
    """What the candidate did to an argument in place."""
    if isinstance(arg, (list, bytearray)) and isinstance(new, (list, bytes)):
        arg[:] = new
    elif isinstance(arg, deque) and isinstance(new, deque):
        arg.clear()
        arg.extend(new)
    elif isinstance(arg, (dict, set)) and type(new) is type(arg):
        arg.clear()
        arg.update(new)


def judge(job: dict[str, Any], line: Line, verdict: int) -> None:
    """Run the tests against the candidate. Writes "tests" when they can begin and "passed" when all of them passed,
    or "unsuitable" and why."""
    try:
        names, tests = _prepared(job, line)
    except Exception as error:
        os.write(verdict, f"unsuitable: {type(error).__name__}: {error}"[:500].encode())
        return
    if line.receive() != "ready":
        return
    os.write(verdict, b"tests\n")
    if line.receive() != "loaded":
        return
    try:
        exec(tests, names)
        if job["entry_point"] and callable(names.get("check")) and not isinstance(names["check"], Remote):
            names["check"](names[job["entry_point"]])
        if not line.questions:
            raise UnsuitableError(f"they never call the candidate; {_HINT}")
    except UnsuitableError as error:
        os.write(verdict, f"unsuitable: {error}"[:500].encode())
    except Exception as error:
        if not line.questions:  # so no candidate is to blame
            why = f"unsuitable: they fail before they call the candidate, {type(error).__name__}: {error}"
            os.write(verdict, f"{why[:300]}; {_HINT}".encode())
    else:
        os.write(verdict, b"passed\n")


def _prepared(job: dict[str, Any], line: Line) -> tuple[dict[str, Any], Any]:
    """The names that the tests see, the candidate's functions among them, and the tests, compiled."""
    names = _module("tests")
    exec(compile(job["preamble"], "<preamble>", "exec"), names)  # its helpers here: the candidate may not replace them
    tests = ast.parse(job["tests"])
    for node in ast.walk(tests):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and not hasattr(builtins, node.id):
            names.setdefault(node.id, Remote(line, node.id))
    if job["entry_point"]:
        names[job["entry_point"]] = Remote(line, job["entry_point"])
    return names, compile(tests, "<tests>", "exec")


# The walls


def enter_namespaces(folder: str) -> None:
    """No network, no other process, no file but Python's own and an empty folder; Linux. `OSError` where forbidden."""
    uid, gid = os.getuid(), os.getgid()
    flags = _NEW_MOUNTS | _NEW_IPC | _NEW_PID | _NEW_NET
    _call("unshare", flags | (_NEW_USER if uid else 0))
    if uid:
        for file, text in {
            "setgroups": "deny",
            "uid_map": f"{_NOBODY} {uid} 1",
            "gid_map": f"{_NOBODY} {gid} 1",
        }.items():
            Path("/proc/self", file).write_text(text)
    _in_child()
    _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    _call("mount", b"tmpfs", folder.encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=16m,mode=755")
    for place in sorted({"/usr", "/lib", "/lib64", sys.base_prefix, sys.base_exec_prefix}):
        inside = Path(folder + place)
        if Path(place).is_symlink():
            inside.symlink_to(Path(place).readlink())
        elif Path(place).is_dir() and not inside.exists():
            inside.mkdir(parents=True)
            _call("mount", place.encode(), str(inside).encode(), None, _BIND | _RECURSIVE, None)
            attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SUID | _NO_DEVICES, 0, 0, 0)
            _call("syscall", _MOUNT_SETATTR, -100, str(inside).encode(), _AT_RECURSIVE, attributes, 32)
    Path(folder, "tmp").mkdir()
    Path(folder, "tmp").chmod(0o777)
    os.chroot(folder)


def _in_child() -> None:
    """Go on in a child, the first process of the new namespace, with which all others in it end."""
    child = os.fork()
    if child:
        # What shows the other side that we are gone must close with the child.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.waitpid(child, 0)
        os._exit(0)
    die_with(0)  # it is outside, so it has no number here


def die_with(parent: int) -> None:
    """End when the process that started this one ends, which it may just have."""
    if sys.platform == "linux":
        _call("prctl", _DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def give_up_rights(job: dict[str, Any]) -> None:
    """Nobody's rights for root, no capability for anybody else, and limits that hold from here on."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    if sys.platform == "linux":
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        _call("capset", header, nothing)
        _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)  # no process of the same user may look inside
    cpu = math.ceil(job["cpu_s"])
    limits = {"CPU": cpu, "AS": job["memory"], "FSIZE": 2**20, "NOFILE": 32, "CORE": 0, "NPROC": 0}
    for name, limit in limits.items():
        with contextlib.suppress(ValueError):  # macOS refuses an address space below what is mapped
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def _call(name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    job = json.load(sys.stdin)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    die_with(job["parent"])
    if job["isolation"] == "namespaces":
        enter_namespaces(job["folder"])
        os.chdir("/tmp")
    else:
        os.chdir(job["folder"])
    give_up_rights(job)
    die_with(0 if job["isolation"] == "namespaces" else job["parent"])  # a change of user had cleared it
    if job["side"] == "candidate":
        serve(job, Line(job["line"]))
    elif job["side"] == "judge":
        judge(job, Line(job["line"]), job["verdict"])


if __name__ == "__main__":
    main()
