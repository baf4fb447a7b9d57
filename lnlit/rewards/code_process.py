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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_MESSAGE_BYTES = 4 * 2**20
_NOBODY = 65534
# Linux numbers, the same on every processor but for the system call, which is new enough to be.
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_NO_SUID, _NO_DEVICES = 2, 4
_MOUNT_SETATTR, _AT_RECURSIVE, _READ_ONLY = 442, 0x8000, 1
_DIE_WITH_PARENT, _SET_DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38


# Plain values


def encode(value: Any, depth: int = 0) -> Any:
    """A value as JSON. `TypeError` for what is not plain data, such as an object with methods."""
    if depth > 50:
        raise TypeError("nested too deeply")
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items()]}
    for kind, of in (
        ("list", list),
        ("tuple", tuple),
        ("set", set),
        ("frozenset", frozenset),
        ("iter", (Iterator, range)),
    ):
        if isinstance(value, of):
            return {kind: [encode(item, depth + 1) for item in value]}
    raise TypeError(f"{type(value).__name__} is not plain data")


def decode(data: Any) -> Any:
    """The value behind `encode`'s JSON; `ValueError` or `TypeError` for anything else."""
    if data is None or isinstance(data, (bool, str)):
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
    containers: dict[str, Callable[[Any], Any]] = {
        "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iter": iter,
    }  # fmt: skip
    return containers[kind]([decode(item) for item in inner])


class Line:
    """Length-prefixed JSON messages over a socket. `EOFError` when the other side is gone or says too much."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self.questions = 0

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        if len(data) > _MESSAGE_BYTES:
            raise TypeError(f"more than {_MESSAGE_BYTES} bytes of data")
        try:
            self._socket.sendall(struct.pack(">I", len(data)) + data)
        except OSError as error:
            raise EOFError from error

    def receive(self) -> Any:
        (size,) = struct.unpack(">I", self._exactly(4))
        if size > _MESSAGE_BYTES:
            raise EOFError
        return json.loads(self._exactly(size))

    def ask(self, question: Any) -> Any:
        self.questions += 1
        self.send(question)
        return self.receive()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self._socket.recv(size - len(data))
            except OSError as error:
                raise EOFError from error
            if not more:
                raise EOFError
            data += more
        return data


# The candidate's side


def serve(job: dict[str, Any], line: Line) -> None:
    """Run the candidate's code, then answer calls of what it defined."""
    line.send("ready")
    names: dict[str, Any] = {"__name__": "solution"}
    for code in (job["preamble"], job["code"]):
        exec(compile(code, "<solution>", "exec"), names)
    line.send("loaded")
    while True:
        call = line.receive()
        args = [decode(arg) for arg in call["args"]]
        keywords = {key: decode(value) for key, value in call["keywords"].items()}
        if call["name"] not in names:
            line.send({"raised": "NameError"})
            continue
        try:
            reply = {"value": encode(names[call["name"]](*args, **keywords))}
            reply["args"] = [encode(arg) for arg in args]  # as the call left them
            line.send(reply)
        except EOFError:
            return
        except Exception as error:
            line.send({"raised": type(error).__name__})


# The judge's side


class CandidateError(Exception):
    """The candidate raised something that has no name among Python's own exceptions, or broke off."""


class UnsuitableError(BaseException):
    """The row's tests cannot be run so, whatever the candidate is."""


class Remote:
    """A function that lives in the candidate's process."""

    def __init__(self, line: Line, name: str) -> None:
        self._line, self._name = line, name

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        try:
            sent = [encode(arg) for arg in args]
            call = {"name": self._name, "args": sent, "keywords": {key: encode(item) for key, item in keywords.items()}}
        except TypeError as error:
            raise UnsuitableError(f"they hand over what cannot leave their process: {error}") from error
        try:
            reply = self._line.ask(call)
            raised = _exception(reply["raised"]) if "raised" in reply else None
            value, after = (None, []) if raised else (decode(reply["value"]), [decode(arg) for arg in reply["args"]])
        except Exception as error:  # whatever it is, it was not an answer
            raise CandidateError("gave no value") from error
        if raised:
            raise raised
        for arg, new, old, now in zip(args, after, sent, reply["args"], strict=False):
            if old != now:
                _write_back(arg, new)
        return value


def _exception(name: Any) -> type[Exception]:
    """Python's own exception of that name, as tests may expect it."""
    found = getattr(builtins, str(name), None)
    return found if isinstance(found, type) and issubclass(found, Exception) else CandidateError


def _write_back(arg: Any, new: Any) -> None:
    """What the candidate did to an argument in place."""
    if isinstance(arg, (list, bytearray)) and isinstance(new, (list, bytes)):
        arg[:] = new
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
            raise UnsuitableError("they never call the candidate")
    except UnsuitableError as error:
        os.write(verdict, f"unsuitable: {error}"[:500].encode())
    else:
        os.write(verdict, b"passed\n")


def _prepared(job: dict[str, Any], line: Line) -> tuple[dict[str, Any], Any]:
    """The names that the tests see, the candidate's functions among them, and the tests, compiled."""
    names: dict[str, Any] = {"__name__": "tests"}
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
