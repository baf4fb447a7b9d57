"""Python processes that begin with torch, Lightning and lnlit imported, which takes a new one seconds.

A server that has imported them, and done nothing else, forks for each: what comes is a process of its own, with its own
arguments, environment, streams, signals and exit. Processes of one server hash strings by the same seed, so there are
two, which all workers of pytest share. What a process imports, or how long that takes, only `subprocess` can tell.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import gc
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

_ANY = random.SystemRandom()  # tests may seed the common one


def free_port() -> int:
    """A port that nobody listens at, below those that the kernel hands out."""
    while True:
        port = _ANY.randrange(10_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


class Process:
    """`python ARGUMENTS` in `cwd`, as far as tests need it with the words of `subprocess.Popen`. It reads nothing, and
    ends with the one who asked for it.

    Args:
        arguments: `-m`, a module and its arguments; or a file and its arguments.
        env: all of its environment; by default that of the test.
        start_new_session: it becomes the leader of a session, and of a process group.
        server: 0 or 1; those of the other hash strings otherwise, so that their sets have another order. Or where a
            server is reached.
        streams: files for its standard output and error instead of temporary ones, which `communicate` reads.
        executable: what it takes for its Python.
    """

    returncode: int | None = None

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        server: int | str = 0,
        streams: tuple[IO[bytes], IO[bytes]] | None = None,
        executable: str = sys.executable,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self._out, self._err = streams or (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115
        request = {
            "arguments": self.args,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": start_new_session,
            "executable": executable,
        }
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(_server(server) if isinstance(server, int) else server)
        socket.send_fds(self._answers, [b"!"], [self._out.fileno(), self._err.fileno()])
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
def python() -> str:
    """An executable that does what Python does in a `Process`, for code that starts processes by itself."""
    file = Path(tempfile.mkdtemp(prefix="lnlit-warm-")) / "python"
    atexit.register(shutil.rmtree, file.parent)
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import warm"
    file.write_text(f"#!{sys.executable} -IS\n{here}\nwarm._stand_in({_server(0)!r})\n")
    file.chmod(0o700)
    return str(file)


def _stand_in(server: str) -> None:
    """End as the process ends, which gets all signals meanwhile. The guard of `lnlit run` is Python itself: it inherits
    files, and its children must be its own."""
    shim, *arguments = sys.argv
    if arguments[:1] != ["-m"] or arguments[1] == "lnlit.cli.guard":
        os.execv(sys.executable, [sys.executable, *arguments])
    process = Process(*arguments, server=server, streams=(sys.stdout.buffer, sys.stderr.buffer), executable=shim)

    def forward(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


@functools.cache
def _server(number: int) -> str:
    """Where it is reached. Who finds nobody there starts it; it ends with the first process of this run of tests."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")  # then the first process is the parent of all workers
    first = os.getppid() if run else os.getpid()
    name = f"lnlit-warm-{run or first}-{number}"
    address = f"\0{name}" if sys.platform == "linux" else f"{tempfile.gettempdir()}/{name}"
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return address
        listening.listen(100)
        command = [sys.executable, __file__, str(listening.fileno()), str(first)]
        null = subprocess.DEVNULL
        subprocess.Popen(command, stdin=null, stdout=null, pass_fds=[listening.fileno()])
    return address


def _serve(listening: socket.socket, first: int) -> socket.socket:
    """Who asks for a process. Each returns in a fork."""
    while True:
        if select.select([listening], [], [], 1.0)[0]:
            asker = listening.accept()[0]
            if os.fork() == 0:
                listening.close()
                return asker
            asker.close()
        elif not _lives(first):
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _lives(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def _become(asker: socket.socket) -> list[str]:
    """Fork once more; the child is what was asked for, and returns its arguments, while the parent says how it ends."""
    out, err = socket.recv_fds(asker, 1, 2)[1]
    request = json.loads(asker.makefile().readline())
    with asker:
        if child := os.fork():
            asker.sendall(f"{child}\n".encode())
            if hasattr(os, "pidfd_open") and asker in select.select([asker, os.pidfd_open(child)], [], [])[0]:
                os.kill(child, signal.SIGKILL)  # nobody waits for it any more
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(OSError):
                asker.sendall(f"{ended}\n".encode())
            os._exit(0)
    if request["session"]:
        os.setsid()
    for given, standard in ((out, 1), (err, 2)):
        os.dup2(given, standard)
        os.close(given)
    sys.executable = request["executable"]
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:] = [path for path in sys.path[1:] if path not in before]  # the first is this file's folder
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to Ctrl-C
    numpy.random.seed()
    return request["arguments"]


def _run(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(arguments[0]).parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _run_and_end(arguments: list[str]) -> None:
    """As Python ends, but without taking all modules apart, which takes longer than many a command."""
    code: object = None
    try:
        _run(arguments)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            code = -signal.SIGINT
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    import numpy.random
    import torch.utils.tensorboard  # noqa: F401  what most of those who ask would import next, as those below

    import lnlit.cli.train
    import lnlit.modules.grpo
    import lnlit.modules.prompt_data
    import lnlit.modules.sft
    import lnlit.rollout.native
    import lnlit.testing.tiny  # noqa: F401

    gc.freeze()
    _run_and_end(_become(_serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))))
