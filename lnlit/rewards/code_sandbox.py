"""Runs untrusted code against tests in two processes of their own (`code_process` says how they talk)."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from lnlit.errors import UserError
from lnlit.interfaces import NoVerdictError

Isolation = Literal["namespaces", "limits"]

_PROGRAM = Path(__file__).with_name("code_process.py")


@dataclass(frozen=True)
class Limits:
    """What each of the two processes may use: seconds of processor and of wall time, bytes of address space."""

    cpu_s: float = 4.0
    wall_s: float = 10.0
    memory: int = 2**30
    isolation: Isolation = "namespaces"

    def __post_init__(self) -> None:
        if self.isolation not in get_args(Isolation):
            raise UserError(f"isolation: expected namespaces or limits, got {self.isolation!r}")
        if not all(0 < seconds < math.inf for seconds in (self.cpu_s, self.wall_s)) or self.memory < 2**27:
            raise UserError(f"limits must be positive, and memory at least 128 MiB; got {self}")


def passes(code: str, tests: str, entry_point: str | None, preamble: str, limits: Limits) -> bool:
    """True if `code` passes every test within the limits. Raises `RuntimeError` if the tests could not begin, and
    `NoVerdictError` if the row's tests are at fault.

    Args:
        code: The untrusted code.
        tests: Python source. A function `check` in it is called with the candidate's `entry_point`.
        entry_point: The function under test. Other names that the tests use and do not define belong to the candidate
            too.
        preamble: Code of the row that is run before `code` and before the tests.
        limits: The limits of each side.
    """
    check_isolation(limits.isolation)
    read, write = os.pipe()
    ours = [os.fdopen(read, "rb", buffering=0), os.fdopen(write, "wb", buffering=0), *socket.socketpair()]
    job = {"preamble": preamble, "entry_point": entry_point}
    with contextlib.ExitStack() as stack:
        for end in ours:
            stack.callback(end.close)
        _, verdict, judge_end, candidate_end = ours
        candidate = {**job, "side": "candidate", "code": code, "line": candidate_end.fileno()}
        stack.enter_context(_running(candidate, limits, [candidate_end.fileno()]))
        judge = {**job, "side": "judge", "tests": tests, "line": judge_end.fileno(), "verdict": verdict.fileno()}
        stack.enter_context(_running(judge, limits, [judge_end.fileno(), verdict.fileno()]))
        for end in ours[1:]:
            end.close()  # only the other processes hold them now, so their end is seen
        said = _read(read, time.monotonic() + limits.wall_s)
    if b"unsuitable" in said:
        raise NoVerdictError("unsuitable_tests", said.decode(errors="replace").partition("unsuitable: ")[2])
    if not said.startswith(b"tests\n"):
        raise RuntimeError(f"the sandbox did not start within {limits.wall_s} s or was refused its limits")
    return said == b"tests\npassed\n"


@cache
def check_isolation(isolation: Isolation) -> None:
    """Raises `UserError` if this machine does not support that isolation. The check is made once per process."""
    if sys.platform != "linux" and isolation == "namespaces":
        raise UserError("isolation: namespaces needs Linux; elsewhere only isolation: limits, which is no boundary")
    if sys.platform == "win32":
        raise UserError("code cannot be run within limits on Windows; use WSL")
    with _job({"side": "none"}, Limits(isolation=isolation)) as job:
        done = subprocess.run(_command(), stdin=job, capture_output=True, text=True, env={}, timeout=60)
    if done.returncode or done.stderr:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(
            f"isolation: {isolation} is not to be had here ({reason}). "
            "Containers often forbid it: allow user namespaces (or CAP_SYS_ADMIN for root), or set isolation: limits, "
            "which is no boundary for what the model writes."
        )


@contextlib.contextmanager
def _running(job: dict[str, Any], limits: Limits, descriptors: list[int]) -> Iterator[None]:
    """Runs one side until the block ends, and then kills it with every process of its group."""
    with _job(job, limits) as file:
        process = subprocess.Popen(
            _command(),
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            pass_fds=descriptors,
            start_new_session=True,
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()


def _command() -> list[str]:
    return [sys.executable, "-I", "-S", str(_PROGRAM)]


@contextlib.contextmanager
def _job(job: dict[str, Any], limits: Limits) -> Iterator[Any]:
    """A nameless file with the job (a pipe would have to be fed while the process runs), and for as long an empty
    folder, which also root's code can use once it has become nobody."""
    with (
        tempfile.TemporaryDirectory(prefix="lnlit-code-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8") as file,
    ):
        if os.getuid() == 0:
            os.chown(folder, 65534, 65534)
        json.dump({**job, **asdict(limits), "folder": folder, "parent": os.getpid()}, file)
        file.seek(0)
        yield file


def _read(descriptor: int, until: float) -> bytes:
    """The content of a pipe until its end or the time limit."""
    said = b""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    while (left := until - time.monotonic()) > 0 and waiting.poll(left * 1000):
        more = os.read(descriptor, 1024)
        if not more:
            break
        said += more
    return said
