"""Runs a rollout engine in a process of its own, so that it generates while this process does something else.

A thread would share Python's lock with the trainer, and weights that change under it. The process has a copy of the
weights, which it gets by value. It ends when this process does, however that happens.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import PolicyWeights, Rollout, RolloutEngine, RolloutRequest, RolloutSampling
from lnlit.models.device import accelerator
from lnlit.rollout.wrapped import WrappedEngine
from lnlit.specs import ModelSpec


class EngineApart(WrappedEngine):
    """Another engine in a process of its own, which the first weights start.

    `generate` may be called in a thread. Nothing but `counts` and `close` may be called until it has returned.

    Args:
        engine: The engine, which has not been used yet.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        super().__init__(engine)
        self._process: Any = None
        self._pipe: Connection | None = None
        self._counts: Mapping[str, int] = {}

    @property
    def runs_apart(self) -> bool:
        return True

    def load_weights(self, weights: PolicyWeights) -> None:
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        with self._told_of_its_end():
            self._pipe.send(("load_weights", weights.spec.to_json(), dict(weights.config), weights.version))
            try:
                for name, tensor in weights.tensors:
                    self._pipe.send((name, tensor.dtype, tuple(tensor.shape)))
                    self._pipe.send_bytes(_bytes(tensor))
            except OSError:
                raise
            except Exception:  # of who makes the tensors
                self._pipe.send(None)
                with contextlib.suppress(UserError):  # the engine misses the rest, and says so
                    self._answer()
                raise
            except BaseException:  # nobody knows what was sent of a tensor
                self.close()
                raise
            self._pipe.send(None)
        self._answer()

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        if self._pipe is None:
            raise UserError("the engine has no weights to generate with; load_weights comes first.")
        with self._told_of_its_end():
            self._pipe.send(("generate", list(requests), sampling))
        return self._answer()

    def counts(self) -> Mapping[str, int]:
        """The counts at the last answer."""
        return self._counts

    def close(self) -> None:
        process, self._process, self._pipe = self._process, None, None
        if process is not None:  # the pipe is closed by a thread that still waits at it
            process.terminate()
            process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a copy of a trainer with its threads would deadlock
        self._pipe, theirs = context.Pipe()
        index = torch.accelerator.current_device_index() if accelerator().type != "cpu" else None
        arguments = (theirs, self.engine, index, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, name="rollout engine", daemon=True)
        self._process.start()
        theirs.close()

    def _answer(self) -> Any:
        assert self._pipe is not None
        with self._told_of_its_end():
            found, error, self._counts = self._pipe.recv()
        if error is not None:
            raise error
        return found

    @contextlib.contextmanager
    def _told_of_its_end(self) -> Iterator[None]:
        process = self._process
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            process.join(10)
            raise RuntimeError(
                f"the process of {type(self.engine).__name__} has ended with exit code {process.exitcode}"
            ) from error


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's values. They are copied when they are sent, so later steps do not change what the engine has."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


# In the process


def _serve(pipe: Connection, engine: RolloutEngine, index: int | None, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, which closes this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if index is not None:
        torch.accelerator.set_device_index(index)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            call, *arguments = pipe.recv()
            found, error = None, None
            try:
                found = _load(pipe, engine, *arguments) if call == "load_weights" else engine.generate(*arguments)
            except UserError as problem:
                error = UserError(str(problem))
            except Exception:  # not all can be sent
                error = RuntimeError(f"in the process of {type(engine).__name__}:\n{traceback.format_exc()}")
            pipe.send((found, error, dict(engine.counts())))


def _load(pipe: Connection, engine: RolloutEngine, spec: Any, config: Mapping[str, Any], version: int) -> None:
    tensors = _received(pipe)
    try:
        engine.load_weights(PolicyWeights(ModelSpec.from_json(spec, "the policy"), config, tensors, version))
    finally:
        for _ in tensors:  # what was sent must not be taken for the next call
            pass


def _received(pipe: Connection) -> Iterator[tuple[str, Tensor]]:
    while (header := pipe.recv()) is not None:
        name, dtype, shape = header
        yield name, torch.frombuffer(bytearray(pipe.recv_bytes()), dtype=dtype).view(shape)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
