"""Python processes that begin with torch, Lightning and lnlit imported, which takes a new one seconds.

A server that has imported them, and done nothing else, forks for each: what comes is a process of its own, with its own
arguments, environment, streams, signals and exit. Processes of one server hash strings by the same seed, so there are
two, which all workers of pytest share; a third has vLLM's Python and has imported vLLM. What a process imports, or how
long that takes, only `subprocess` can tell.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import gc
import importlib
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
from collections.abc import Iterable, Mapping, Sequence
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
    ends with the one who asked for it; with all of its session, if it leads one.

    Args:
        arguments: `-m`, a module and its arguments; a file and its arguments; or `-c`, code and its arguments.
        env: all of its environment; by default that of the test.
        start_new_session: it becomes the leader of a session, and of a process group.
        server: 0 or 1; those of the other hash strings otherwise, so that their sets have another order. Or where a
            server is reached.
        streams: files for its standard output and error instead of temporary ones, which `communicate` reads.
        pass_fds: descriptors that it has, too, by the same numbers.
        executable: what it takes for its Python.
        parent: the process that it takes for its parent, instead of one that does nothing but wait for it.
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
        pass_fds: Sequence[int] = (),
        executable: str = sys.executable,
        parent: int | None = None,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self._out, self._err = streams or (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115
        request = {
            "arguments": self.args,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": start_new_session,
            "pass_fds": list(pass_fds),
            "executable": executable,
            "parent": parent,
        }
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(_server(server) if isinstance(server, int) else server)
        socket.send_fds(self._answers, [b"!"], [self._out.fileno(), self._err.fileno(), *pass_fds])
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
def python(real: str = sys.executable, server: int | str = 0) -> str:
    """An executable that does what Python, of which `real` is the path, does in a `Process`; for code that starts
    processes by itself."""
    file = Path(tempfile.mkdtemp(prefix="lnlit-warm-")) / "python"
    atexit.register(shutil.rmtree, file.parent)
    address = _server(server) if isinstance(server, int) else server
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import warm"
    file.write_text(f"#!{real} -IS\n{here}\nwarm._stand_in({address!r})\n")
    file.chmod(0o700)
    return str(file)


def vllm_python(real: str, settings: Mapping[str, str]) -> str:
    """The same with vLLM imported, by the Python of its environment and with these environment variables."""
    return python(real, _server("vllm", real, tuple(settings.items())))


def _stand_in(server: str) -> None:
    """End as the process ends, which gets all signals meanwhile. The guard of `lnlit run`, whose children must be its
    own, is Python itself. So is what reads its code from an argument, but for processes of multiprocessing."""
    shim, *arguments = [word for word in sys.argv if word not in ("-u", "-B")]  # how Python is run, not what
    starts = {"-m": arguments[1:2] != ["lnlit.cli.guard"], "-c": "--multiprocessing-fork" in arguments}
    if not arguments or not starts.get(arguments[0], arguments[0].endswith(".py")):
        os.execv(sys.executable, [sys.executable, *arguments])
    open_ones = [int(file.name) for file in Path("/dev/fd").iterdir()]
    process = Process(
        *arguments,
        server=server,
        start_new_session=os.getpgrp() == os.getpid(),
        streams=(sys.stdout.buffer, sys.stderr.buffer),
        pass_fds=[0, *(number for number in open_ones if number > 2 and _is_inherited(number))],
        executable=shim,
        parent=os.getppid(),
    )

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


def _is_inherited(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:  # what listed them
        return False


@functools.cache
def _server(which: int | str, real: str = sys.executable, settings: tuple[tuple[str, str], ...] = ()) -> str:
    """Where it is reached. Who finds nobody there starts it; it ends with the first process of this run of tests."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")  # then the first process is the parent of all workers
    first = os.getppid() if run else os.getpid()
    name = f"lnlit-warm-{run or first}-{which}"
    address = f"\0{name}" if sys.platform == "linux" else f"{tempfile.gettempdir()}/{name}"
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return address
        listening.listen(100)
        command = [real, __file__, str(which), str(listening.fileno()), str(first)]
        null = subprocess.DEVNULL
        environment = {**os.environ, **dict(settings)}
        subprocess.Popen(command, stdin=null, stdout=null, pass_fds=[listening.fileno()], env=environment)
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
    given = socket.recv_fds(asker, 1, 100)[1]
    request = json.loads(asker.makefile().readline())
    with asker:
        if child := os.fork():
            asker.sendall(f"{child}\n".encode())
            if hasattr(os, "pidfd_open") and asker in select.select([asker, os.pidfd_open(child)], [], [])[0]:
                with contextlib.suppress(ProcessLookupError):  # nobody waits for it any more
                    os.kill(child, signal.SIGKILL)
                    if request["session"]:
                        os.killpg(child, signal.SIGKILL)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(OSError):
                asker.sendall(f"{ended}\n".encode())
            os._exit(0)
    if request["session"]:
        os.setsid()
    apart = [fcntl.fcntl(number, fcntl.F_DUPFD, 500) for number in given]  # from the numbers that they get
    for number in given:
        os.close(number)
    for number, wanted in zip(apart, [1, 2, *request["pass_fds"]], strict=True):
        os.dup2(number, wanted)
        os.close(number)
    _take_for_its_own(request["executable"], request["parent"])
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:] = [path for path in sys.path[1:] if path not in before]  # the first is this file's folder
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to Ctrl-C
    numpy.random.seed()
    return request["arguments"]


def _take_for_its_own(executable: str, parent: int | None) -> None:
    sys.executable = executable
    multiprocessing.spawn.set_executable(executable)
    if registry := sys.modules.get("vllm.model_executor.models.registry"):  # looks at models in processes of their own
        registry._SUBPROCESS_COMMAND = [executable, *registry._SUBPROCESS_COMMAND[1:]]
    if parent is not None:
        own, of_any = os.getpid(), os.getppid
        os.getppid = lambda: of_any() if os.getpid() != own else parent if _lives(parent) else 1


def _run(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
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


#: What most commands of lnlit import sooner or later.
MOST = (
    *("gguf", "math_verify", "torch.utils.tensorboard", "torchtune.modules.peft", "torch.distributed.checkpoint"),
    *("torch.distributed.fsdp", "torch.distributed.tensor.parallel", "lnlit.cli.train", "lnlit.models.parallelize"),
    *("lnlit.modules.prompt_data", "lnlit.rollout.native", "lnlit.testing.tiny"),
    *(f"lnlit.modules.{method}" for method in ("distill", "grpo", "reward_model", "rloo", "rpo", "sft")),
)
_VLLM = ("vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker", "vllm.v1.attention.backends.cpu_attn")
_VLLM += ("vllm.model_executor.models.llama",)


def import_all(names: Iterable[str]) -> None:
    for name in names:
        importlib.import_module(name)


if __name__ == "__main__":
    import logging
    import multiprocessing.spawn

    import numpy.random

    which, socket_number, first = sys.argv[1:]
    logging.disable(logging.WARNING)  # of what torchao looks for and does not find
    import_all(_VLLM if which == "vllm" else MOST)
    logging.disable(logging.NOTSET)
    gc.freeze()
    _run_and_end(_become(_serve(socket.socket(fileno=int(socket_number)), int(first))))
