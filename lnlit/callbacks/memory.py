"""Memory use of a run by phase (Llama-Nemotron section 5.2.2: profilers of GPU, process and /dev/shm)."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.rl.collector import RolloutData

_GIB = 2**30
_SHARED = Path("/dev/shm")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_TRAIN = "train"


class MemoryRecorder(L.Callback):
    """Logs `memory/<phase>/<name>` in GiB after every phase, and prints a table of the maxima at the end of the run.

    The phases are `train` (an optimizer step with its micro-batches) and those that the data module reports to its
    `phases.listeners`, such as generate, score and sync. The names are:

    - `gpu_allocated`, `gpu_reserved`: this process's tensors, and the memory that its allocator holds for them;
    - `gpu_peak`: the maximum of `gpu_allocated` during the phase;
    - `gpu_used`: memory in use on the device by all processes, such as an engine's own;
    - `rss`, `rss_peak`: resident memory of this process, and its maximum during the phase;
    - `shm`: memory in use in /dev/shm.

    Names without a peak are read at the start and the end of the phase, and the higher value counts. Peaks are reset at
    the start of each phase, so `memory/peak_gib` of `Throughput` covers one phase too. Except on Linux, `rss_peak` is
    the maximum since the process started.
    """

    def __init__(self) -> None:
        self.most: dict[str, dict[str, float]] = {}  # phase -> name -> bytes
        self._trainer: L.Trainer | None = None
        self._phase: str | None = None
        self._start: Mapping[str, float] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trainer = trainer
        data = getattr(trainer, "datamodule", None)
        self._listeners = data.phases.listeners if isinstance(data, RolloutData) else None
        if self._listeners is not None:
            self._listeners.append(self.on_phase)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self._phase != _TRAIN:
            self._step = trainer.global_step
            self.on_phase(_TRAIN, "start")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step > self._step:
            self.on_phase(_TRAIN, "end")

    def on_phase(self, name: str, event: str) -> None:
        """Called at the "start" and the "end" of a phase. The start of a phase also ends the one before."""
        if event == "start":
            self._finish()
            reset_peaks()
            self._phase, self._start = name, readings()
        elif name == self._phase:
            self._finish()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()  # a run that ends for want of memory is the one to look into

    def _finish(self) -> None:
        phase, self._phase = self._phase, None
        if phase is None or self._trainer is None:
            return
        found = {name: max(value, self._start.get(name, 0.0)) for name, value in readings().items()}
        most = self.most.setdefault(phase, {})
        for name, value in found.items():
            most[name] = max(value, most.get(name, 0.0))
        for logger in self._trainer.loggers:
            metrics = {f"memory/{phase}/{name}": value / _GIB for name, value in found.items()}
            logger.log_metrics(metrics, self._trainer.global_step)

    def _close(self) -> None:
        if self._trainer is None:
            return
        self._finish()
        if self._listeners is not None:
            self._listeners.remove(self.on_phase)
        self._trainer = None
        if self.most:
            rank_zero_info(f"\n{render(self.most)}")


def readings() -> dict[str, float]:
    """The current memory use in bytes, by the names that `MemoryRecorder` explains."""
    found: dict[str, float] = {}
    if torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        found["gpu_allocated"] = torch.cuda.memory_allocated()
        found["gpu_reserved"] = torch.cuda.memory_reserved()
        found["gpu_peak"] = torch.cuda.max_memory_allocated()
        found["gpu_used"] = total - free
    found |= _resident()
    if _SHARED.is_dir():
        found["shm"] = shutil.disk_usage(_SHARED).used
    return found


def reset_peaks() -> None:
    """Resets the peak of GPU memory and, on Linux, of resident memory."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        _CLEAR.write_text("5")


def render(most: Mapping[str, Mapping[str, float]]) -> str:
    """A text table of each phase's maxima in GiB."""
    names = list(dict.fromkeys(name for found in most.values() for name in found))
    width = max(map(len, most))
    lines = ["most memory, GiB", " " * width + "".join(f"  {name:>7}" for name in names)]
    for phase, found in most.items():
        cells = [f"{found[name] / _GIB:.2f}" if name in found else "" for name in names]
        aligned = [f"  {cell:>{max(len(name), 7)}}" for name, cell in zip(names, cells, strict=True)]
        lines.append(f"{phase:<{width}}{''.join(aligned)}")
    return "\n".join(lines)


def _resident() -> dict[str, float]:
    with suppress(OSError, KeyError, ValueError):
        status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        kib = {name: float(status[key].split()[0]) for name, key in (("rss", "VmRSS"), ("rss_peak", "VmHWM"))}
        return {name: value * 1024 for name, value in kib.items()}
    return {"rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}
