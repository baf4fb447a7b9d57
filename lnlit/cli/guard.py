"""Makes sure that a stage does not outlive `lnlit run`, even if that is killed.

    lnlit run  --->  guard (this file, its own process)  --->  the stage  --->  whatever it starts

The guard holds one end of a pipe, and only `lnlit run` the other. The pipe closes when `lnlit run` ends in any way, and
the guard then kills the stage with all processes that it has started. It also holds the lock of the pipeline, which is
therefore kept until nothing of the stage is left. Processes that a stage leaves behind when it ends by itself get some
seconds and are then killed, because two trainers must never share a folder or a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Seconds that a stage's own processes have to end after it.
_GRACE_S = 5.0
_DIE_WITH_PARENT, _ADOPT_ORPHANS = 1, 36  # of Linux's prctl


def guarded(command: Sequence[str], lock: int, environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """(exit code of a command, the signal that this process received meanwhile, or 0). `lock` is an open file that is
    held until nothing of the command runs any more. `environment` is the command's, by default this process's.

    Ctrl-C and SIGTERM are passed on, and the command's end is waited for, because it saves its state. It has its own
    process group, because Ctrl-C in a terminal would otherwise reach it twice.
    """
    process: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def forward(number: int, frame: Any) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(_passed_on(number))

    reads, writes = os.pipe()
    with _handling(forward, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        try:
            guard = [sys.executable, "-m", "lnlit.cli.guard", str(reads), *command]
            process = subprocess.Popen(guard, pass_fds=(reads, lock), process_group=0, env=environment)
            os.close(reads)
            for number in received:  # before there was a process
                process.send_signal(_passed_on(number))
            code = process.wait()
        finally:
            os.close(writes)
    return (code if code >= 0 else 128 - code), (received[0] if received else 0)


def main(argv: list[str]) -> int:
    """Runs `python -m lnlit.cli.guard PIPE COMMAND...`. Returns the command's exit code, 128 + n after signal n."""
    pipe, command = int(argv[0]), argv[1:]
    stage: subprocess.Popen[bytes] | None = None
    early: list[int] = []
    alone = threading.Event()

    def forward(number: int, frame: Any) -> None:
        early.append(number)
        if stage is not None:
            stage.send_signal(_passed_on(number))

    def watch(pid: int) -> None:
        while os.read(pipe, 1):
            pass
        alone.set()
        _kill(pid)

    _prctl(_ADOPT_ORPHANS, 1)
    with _handling(forward, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        own = os.getpid()
        stage = subprocess.Popen(command, process_group=0, preexec_fn=lambda: _die_with(own))
        for number in early:
            stage.send_signal(_passed_on(number))
        threading.Thread(target=watch, args=(stage.pid,), daemon=True).start()
        code = stage.wait()
        _end_the_rest(stage.pid, 0.0 if alone.is_set() else _GRACE_S, alone)
    return code if code >= 0 else 128 - code


def _passed_on(number: int) -> int:
    return signal.SIGINT if number == signal.SIGINT else signal.SIGTERM


@contextmanager
def _handling(handler: Any, *numbers: int) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_the_rest(group: int, grace_s: float, at_once: threading.Event) -> None:
    """Waits for the processes that the stage has started, and kills those that do not end. On Linux, orphans at any
    depth become children of this process; elsewhere, those in the stage's process group are found."""
    end = time.monotonic() + grace_s
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = _children(os.getpid())
        late = at_once.is_set() or time.monotonic() > end
        if sys.platform != "linux":
            _kill(-group) if late else time.sleep(min(grace_s, 0.2))
            return
        if not left:
            return
        for pid in left if late else ():
            _kill(pid)
        time.sleep(0.01)


def _children(parent: int) -> list[int]:
    """The child processes of `parent`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            if int(status.read_bytes().rpartition(b")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(-pid, signal.SIGKILL) if pid < 0 else os.kill(pid, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Called in the stage before it begins: makes it end when the guard does, which may already have happened."""
    _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
