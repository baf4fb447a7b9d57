"""Python processes that begin with torch, Lightning and lnlit imported, which takes a new one seconds.

A server that has imported them, and done nothing else, forks for each: what comes is a process of its own, with its own
arguments, environment, streams, signals and exit. Processes of one server hash strings by the same seed, so there are
two. What a process imports, or how long that takes, only `subprocess` can tell.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

_ANY = random.SystemRandom()  # tests may seed the common one


def free_port() -> int:
    """A port that nobody listens at, below those that the kernel hands out."""
    while True:
        port = _ANY.randrange(10_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


class Process:
    """`python ARGUMENTS` in `cwd`, as far as tests need it with the words of `subprocess.Popen`. It reads nothing.

    Args:
        arguments: `-m`, a module and its arguments; or a file and its arguments.
        env: all of its environment; by default that of the test.
        start_new_session: it becomes the leader of a session, and of a process group.
        server: 0 or 1; those of the other hash strings otherwise, so that their sets have another order.
    """

    returncode: int | None = None

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        server: int = 0,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        request = {
            "arguments": self.args,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": start_new_session,
        }
        self._answers, theirs = socket.socketpair()
        with theirs:
            files = [theirs.fileno(), self._out.fileno(), self._err.fileno()]
            socket.send_fds(_server(server), [b"!"], files)
        self._answers.sendall(json.dumps(request).encode() + b"\n")
        self._lines = self._answers.makefile()
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """The exit code, as soon as it has ended."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; `subprocess.TimeoutExpired` after so many seconds."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(standard output, standard error) of the ended process, which is killed after `timeout` seconds."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired as late:
            self.send_signal(signal.SIGKILL)
            self.wait()
            late.add_note(self._read()[1])
            raise
        return self._read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self._answers.recv(1, socket.MSG_PEEK)
            except (BlockingIOError, TimeoutError):
                return None
            self._answers.settimeout(None)
            self.returncode = int(self._lines.readline())
        return self.returncode

    def _read(self) -> tuple[str, str]:
        for file in (self._out, self._err):
            file.seek(0)
        return self._out.read().decode(), self._err.read().decode()


def run(*arguments: str | Path, timeout: float | None = None, **options) -> subprocess.CompletedProcess[str]:
    """A `Process` that has ended by itself."""
    process = Process(*arguments, **options)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def torchrun(ranks: int, script: Path, *arguments: str | Path, cwd: Path, timeout: float) -> None:
    """What `torch.distributed.run --standalone --nproc_per_node=RANKS` starts; all ranks must end well. Neighbours hash
    strings otherwise, as theirs do.
    """
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RUN_ID": "none",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
    }
    started = [
        Process(
            script, *arguments, cwd=cwd, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, server=rank % 2
        )
        for rank in range(ranks)
    ]
    end = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in started) and not any(process.poll() for process in started):
            assert time.monotonic() < end, f"ranks take longer than {timeout} s"
            time.sleep(0.02)
    finally:
        for process in started:
            process.send_signal(signal.SIGKILL)
        ended = [(process.wait(), process.communicate()[1]) for process in started]
    said = (f"rank {rank} ended with {code}: {errors[-6000:]}" for rank, (code, errors) in enumerate(ended))
    assert not any(code for code, _ in ended), "\n".join(said)


@functools.cache
def _server(number: int) -> socket.socket:
    """Where it is asked. It ends when nobody can ask any more."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        null = subprocess.DEVNULL
        subprocess.Popen(command, stdin=null, stdout=null, pass_fds=[theirs.fileno()])
    return ours


def _serve(requests: socket.socket) -> list[int]:
    """Files of a request: who waits for an answer, standard output, standard error. Each returns in a fork."""
    with requests:
        while files := socket.recv_fds(requests, 1, 3)[1]:
            if os.fork() == 0:
                return files
            for file in files:
                os.close(file)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    os._exit(0)


def _become(asker: int, out: int, err: int) -> list[str]:
    """Fork once more; the child is what was asked for, and returns its arguments, while the parent says how it ends."""
    with socket.socket(fileno=asker) as answers:
        request = json.loads(answers.makefile().readline())
        if child := os.fork():
            answers.sendall(f"{child}\n".encode())
            answers.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
            os._exit(0)
    if request["session"]:
        os.setsid()
    for given, standard in ((out, 1), (err, 2)):
        os.dup2(given, standard)
        os.close(given)
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:] = [path for path in sys.path[1:] if path not in before]  # the first is this file's folder
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to Ctrl-C
    numpy.random.seed()
    return request["arguments"]


if __name__ == "__main__":
    import numpy.random

    import lnlit.cli.train  # noqa: F401  # and lightning, transformers

    gc.freeze()
    arguments = _become(*_serve(socket.socket(fileno=int(sys.argv[1]))))
    if arguments[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(arguments[0]).parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
