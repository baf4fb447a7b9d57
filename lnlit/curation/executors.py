"""What runs the parts of a pipeline: processes of this machine, or datatrove's executors for Slurm and for Ray."""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import IO, Any

import dill
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
        """Runs all parts whose tasks are not done yet, `workers` tasks at a time (None: as many as it likes). Returns
        whether they have ended: a cluster may only have been told to run them."""


class Local(Executor):
    """Processes of this machine."""

    def run(self, phases: Sequence[Phase], work: Path, workers: int | None) -> bool:
        for number, phase in enumerate(phases):
            tasks = _Tasks(phase, logs_of(work, number), _tasks_lock(work))
            left, what = tasks.get_incomplete_ranks(), f"curate {number + 1}/{len(phases)}, {phase.name}"
            ended = _here(tasks, left) if workers in (None, 1) else _apart(tasks, left, workers, what)
            for _ in track(ended, what, "task", total=phase.tasks, done=phase.tasks - len(left)):
                pass
        return True


class _Tasks(LocalPipelineExecutor):
    """The tasks of a part of a pipeline. Each holds a lock while it runs, so that a new run can wait for those that are
    still ending."""

    def __init__(self, phase: Phase, logs: Path, lock: Path) -> None:
        super().__init__(list(phase.blocks), phase.tasks, logging_dir=str(logs))
        self._lock = str(lock)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        logger.disable("datatrove")  # an error is told once, by us
        with Path(self._lock).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return super()._run_for_rank(rank, local_rank, node_rank)


# datatrove's own loop over tasks waits forever for one whose process was killed, and leaves processes behind when this
# one is.


def _here(tasks: _Tasks, ranks: Sequence[int]) -> Iterator[int]:
    """Runs tasks in this process, and yields each that is done."""
    for rank in ranks:
        one = copy(tasks)
        one.pipeline = deepcopy(tasks.pipeline)
        one._run_for_rank(rank)
        yield rank


def _apart(tasks: _Tasks, ranks: Sequence[int], workers: int, what: str) -> Iterator[int]:
    """Runs tasks in other processes, and yields each that is done. These end with this one, even if that is killed."""
    pickled = dill.dumps(tasks, recurse=True)  # with what the steps of a user's script or notebook need of it
    with _processes(workers) as pool:
        waiting = {pool.submit(_run_pickled, pickled, rank): rank for rank in ranks}
        try:
            for each in as_completed(waiting):
                each.result()
                yield waiting[each]
        except BrokenProcessPool as error:
            raise UserError(
                f"{what}: the process of a task was killed, perhaps for lack of memory. What was done is kept: run the "
                "same command again, with fewer workers if it lacked memory."
            ) from error


def _run_pickled(tasks: bytes, rank: int) -> None:
    dill.loads(tasks)._run_for_rank(rank)  # noqa: S301 - bytes made by this run


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are killed if the block fails, whatever they do."""
    others = {*multiprocessing.active_children()}
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _die_with_parent, (os.getpid(),))
    try:
        yield pool
    except BaseException:
        for process in {*multiprocessing.active_children()} - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _die_with_parent(parent: int) -> None:
    """Makes this process end when its parent does, and not by Ctrl-C, which is for the parent to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


class Slurm(Executor):
    """Jobs of Slurm, as datatrove submits them: one array of jobs for each part, which waits for the one before.

    `lnlit curate` ends when all are submitted. The same command submits what has not been done, and tells the counts
    once the last job has ended. The output's folder must be one that all nodes share.

    Args:
        time: Time limit of a task, as Slurm writes it.
        partition: Slurm's partition.
        settings: Further settings of datatrove's `SlurmPipelineExecutor`, such as `cpus_per_task`, `mem_per_cpu_gb`,
            `gpus_per_task`, `sbatch_args`, or `env_command`, which makes lnlit available on a node, as `source
            .venv/bin/activate` does.
    """

    def __init__(self, time: str, partition: str, settings: dict[str, Any] | None = None) -> None:
        self.time, self.partition, self.settings = time, partition, settings or {}

    def run(self, phases: Sequence[Phase], work: Path, workers: int | None) -> bool:
        from datatrove.executor.slurm import SlurmPipelineExecutor

        options = {"time": self.time, "partition": self.partition, "workers": workers or -1, **self.settings}
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
        settings: Settings of datatrove's `RayPipelineExecutor`, such as `cpus_per_task` and `mem_per_cpu_gb`.
    """

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {}

    def run(self, phases: Sequence[Phase], work: Path, workers: int | None) -> bool:
        try:
            import ray  # type: ignore[import-not-found]
        except ImportError as error:
            raise UserError("executor: Ray is not installed; run: pip install 'ray[default]'") from error
        from datatrove.executor.ray import RayPipelineExecutor

        ray.init(ignore_reinit_error=True)
        options = {"workers": workers or -1, **self.settings}
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
