"""What runs the parts of a pipeline: datatrove's executors for this machine, for Slurm and for Ray."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger

from lnlit.curation.phases import Phase, logs_of
from lnlit.errors import UserError
from lnlit.progress import track

#: Seconds that the processes of a run that was killed may take to end.
_GRACE_S = 5.0


class Executor(ABC):
    """The place where a pipeline runs. Each part of it begins when the one before has ended."""

    @abstractmethod
    def run(self, phases: Sequence[Phase], work: Path, workers: int | None) -> bool:
        """Runs all parts whose tasks are not done yet, `workers` tasks at a time (None: as
        many as it likes). Returns whether they have ended: a
        cluster may only have been told to run them."""


class Local(Executor):
    """Processes of this machine."""

    def run(self, phases: Sequence[Phase], work: Path, workers: int | None) -> bool:
        logger.disable("datatrove")  # an error is told once, by us
        for number, phase in enumerate(phases):
            executor = _Local(phase, logs_of(work, number), workers or 1, _tasks_lock(work))
            if executor.get_incomplete_ranks():
                with _reported(executor, f"curate {number + 1}/{len(phases)}, {phase.name}"), _dying_together():
                    executor.run()
        return True


class _Local(LocalPipelineExecutor):
    """datatrove's, whose processes end with this one, even if that is killed. A task holds a lock, so that a new run
    can wait for those that are still ending."""

    def __init__(self, phase: Phase, logs: Path, workers: int, lock: Path) -> None:
        super().__init__(list(phase.blocks), phase.tasks, min(workers, phase.tasks), str(logs))
        self._lock, self._main = str(lock), os.getpid()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        logger.disable("datatrove")  # in this process, which may be another
        if os.getpid() != self._main:
            _die_with_parent(self._main)
        with Path(self._lock).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return super()._run_for_rank(rank, local_rank, node_rank)


class Slurm(Executor):
    """Jobs of Slurm, as datatrove submits them: one array of jobs for each part, which waits for the one before.

    `lnlit curate` ends when all are submitted. The same command submits what has not been done, and tells the counts
    once the last job has ended. The output's folder must be one that all nodes share.

    Args:
        time: Time limit of a task, as Slurm writes it.
        partition: Slurm's partition.
        cpus_per_task: Cores of a task.
        mem_per_cpu_gib: Memory for each core.
        gpus_per_task: GPUs of a task.
        env_command: A command that makes lnlit available on a node, such as `source .venv/bin/activate`.
        sbatch_args: Further options of `sbatch`.
        settings: Further settings of datatrove's `SlurmPipelineExecutor`.
    """

    def __init__(
        self,
        time: str,
        partition: str,
        cpus_per_task: int = 1,
        mem_per_cpu_gib: int = 2,
        gpus_per_task: int = 0,
        env_command: str | None = None,
        sbatch_args: dict[str, str | int] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.time, self.partition, self.cpus_per_task = time, partition, cpus_per_task
        self.mem_per_cpu_gib, self.gpus_per_task, self.env_command = mem_per_cpu_gib, gpus_per_task, env_command
        self.sbatch_args, self.settings = sbatch_args or {}, settings or {}

    def run(self, phases: Sequence[Phase], work: Path, workers: int | None) -> bool:
        from datatrove.executor.slurm import SlurmPipelineExecutor

        options = {
            "time": self.time,
            "partition": self.partition,
            "cpus_per_task": self.cpus_per_task,
            "mem_per_cpu_gb": self.mem_per_cpu_gib,
            "gpus_per_task": self.gpus_per_task,
            "env_command": self.env_command,
            "sbatch_args": dict(self.sbatch_args),
            "workers": workers or -1,
            **self.settings,
        }
        before = None
        for number, phase in enumerate(phases):
            logs, name = logs_of(work, number), f"curate-{number}"
            executor = SlurmPipelineExecutor(
                list(phase.blocks), phase.tasks, logging_dir=str(logs), job_name=name, depends=before, **options
            )
            executor.run()
            before = executor
        return not any(executor_left(logs_of(work, number), phase) for number, phase in enumerate(phases))


class Ray(Executor):
    """Tasks of a Ray cluster, which must be reachable as `ray.init()` finds it. Ray is no dependency of lnlit.

    Args:
        cpus_per_task: Cores of a task.
        mem_per_cpu_gib: Memory for each core.
        settings: Further settings of datatrove's `RayPipelineExecutor`.
    """

    def __init__(
        self, cpus_per_task: int = 1, mem_per_cpu_gib: float = 2, settings: dict[str, Any] | None = None
    ) -> None:
        self.cpus_per_task, self.mem_per_cpu_gib, self.settings = cpus_per_task, mem_per_cpu_gib, settings or {}

    def run(self, phases: Sequence[Phase], work: Path, workers: int | None) -> bool:
        try:
            import ray  # type: ignore[import-not-found]
        except ImportError as error:
            raise UserError("executor: Ray is not installed; run: pip install 'ray[default]'") from error
        from datatrove.executor.ray import RayPipelineExecutor

        ray.init(ignore_reinit_error=True)
        options: Mapping[str, Any] = {
            "cpus_per_task": self.cpus_per_task,
            "mem_per_cpu_gb": self.mem_per_cpu_gib,
            "workers": workers or -1,
            **self.settings,
        }
        for number, phase in enumerate(phases):
            logs = logs_of(work, number)
            RayPipelineExecutor(list(phase.blocks), phase.tasks, logging_dir=str(logs), **options).run()
            if left := executor_left(logs, phase):
                raise UserError(f"executor: {left} of {phase.tasks} tasks of {phase.name!r} failed; see {logs}/logs")
        return True


def executor_left(logs: Path, phase: Phase) -> int:
    """How many tasks of a part are not done."""
    return sum(not (logs / "completions" / f"{rank:05d}").exists() for rank in range(phase.tasks))


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Holds the lock of a folder of scratch. What is left of a run that was killed gets some seconds to end.

    Raises `UserError` if another command works in the folder.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock, _tasks_lock(work).open("w") as tasks:
        end = time.monotonic() + _GRACE_S
        while not (_is_free(lock) and _is_free(tasks)):
            if time.monotonic() > end:
                raise UserError(f"{work}: another process is writing these rows. Wait for it, or stop it.")
            time.sleep(0.05)
        fcntl.flock(tasks, fcntl.LOCK_UN)
        yield


def _is_free(lock: IO[str]) -> bool:
    """Takes a lock unless another process holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _tasks_lock(work: Path) -> Path:
    """The file that every task holds a lock of, in whichever process it runs."""
    return work / "tasks"


@contextmanager
def _reported(executor: LocalPipelineExecutor, what: str) -> Iterator[None]:
    """Reports how many tasks are done while the block runs."""
    ended = threading.Event()

    def done() -> Iterator[None]:
        told = before
        while True:
            over = ended.wait(0.2)
            now = executor.tasks - len(executor.get_incomplete_ranks())
            yield from [None] * (now - told)
            told = now
            if over:
                return

    def report() -> None:
        for _ in track(done(), what, "task", total=executor.tasks, done=before):
            pass

    before = executor.tasks - len(executor.get_incomplete_ranks())
    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


#: The process whose children are to end with it, while it runs a pipeline.
_parent = 0


@contextmanager
def _dying_together() -> Iterator[None]:
    """Children that are forked in the block end with this process. datatrove's manager of locks would otherwise live
    on, and hold the standard output that it has inherited."""
    global _parent
    _hook()
    _parent = os.getpid()
    try:
        yield
    finally:
        _parent = 0


@cache
def _hook() -> None:
    os.register_at_fork(after_in_child=lambda: _die_with_parent(_parent, is_parent=True) if _parent else None)


def _die_with_parent(main: int, is_parent: bool = False) -> None:
    """Makes this process end when its parent does, and at once if the run's first process is gone already. Between them
    there may be a server that forks, which ends with the first process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != main if is_parent else not _is_alive(main):
        os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/stat")
        return not status.exists() or status.read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False
