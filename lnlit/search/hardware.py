"""What a timing depends on besides the model: the machine, its torch, the number of threads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lnlit.models.device import has_cuda
from lnlit.schema import Whole


@dataclass(frozen=True)
class Hardware:
    """One machine as timings see it. `device` is "cpu" or the name of the GPU, `device_count` how many there are."""

    cpu: str
    cores: Whole
    memory_gib: Whole
    device: str
    device_count: Whole
    torch: str
    threads: Whole

    @classmethod
    def here(cls, device: str) -> Hardware:
        """This machine and process, computing on `device` ("cpu" or "cuda")."""
        on_gpu = device == "cuda" and has_cuda()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return cls(
            cpu=_cpu_model(),
            cores=_usable_cores(),
            memory_gib=round(memory / 2**30),
            device=torch.cuda.get_device_name() if on_gpu else "cpu",
            device_count=torch.cuda.device_count() if on_gpu else 1,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
        )

    @property
    def fingerprint(self) -> str:
        """Equal for machines whose times can be compared; `differences` tells where it is not."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Hardware) -> list[str]:
        """What differs in `other`, e.g. `["threads: 1 there, 2 here"]` for a table from there and a machine here."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [f"{key}: {mine[key]} there, {theirs[key]} here" for key in mine if mine[key] != theirs[key]]

    def to_json(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, **dataclasses.asdict(self)}


def _usable_cores() -> int:
    """Cores that this process may use, fewer than the machine's under taskset or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    """Name, family and model: virtual machines often hide the name alone."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in info.read_text().split("\n\n")[0].split("\n"))
    values = {key.strip(): value.strip() for key, _, value in pairs}
    name = values.get("model name", platform.machine())
    return f"{name} (family {values['cpu family']}, model {values['model']})" if "cpu family" in values else name
