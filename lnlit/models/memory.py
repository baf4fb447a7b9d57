"""How much memory this process may still take."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int | None:
    """The bytes that this process may still allocate on `device`, or None if the system does not say.

    On a GPU it is what is free there, with what torch holds unused. On the CPU it is this process's share of what the
    machine has free, the processes that torchrun started beside it having the others, or what its control group or its
    own limits (RLIMIT_AS, RLIMIT_DATA) leave, if that is less. The latter are read from Linux's /proc.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return None
    shared = [_numbers(Path("/proc/meminfo"))["MemAvailable"], *_left_in_control_groups()]
    return min([min(shared) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), *_left_of_limits()])


def _left_of_limits() -> list[int]:
    """What the limits of this process leave it."""
    import resource  # not everywhere

    used = _numbers(Path("/proc/self/status"))
    limits = {"VmSize": resource.RLIMIT_AS, "VmData": resource.RLIMIT_DATA}
    found = [(used[name], resource.getrlimit(limit)[0]) for name, limit in limits.items()]
    return [max(limit - now, 0) for now, limit in found if limit != resource.RLIM_INFINITY]


def _left_in_control_groups() -> list[int]:
    """What this process's control group (version 2) and those around it leave, files that may be dropped not counted
    as used."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    mine = next((line.removeprefix("0::/") for line in lines if line.startswith("0::")), "")
    root, found = Path("/sys/fs/cgroup"), []
    for group in (root / mine, *(root / mine).parents):
        limit, used = group / "memory.max", group / "memory.current"
        if root not in (group, *group.parents) or not limit.is_file() or (text := limit.read_text().strip()) == "max":
            continue
        files = _numbers(group / "memory.stat", unit=1)
        found.append(max(int(text) - int(used.read_text()) + files["active_file"] + files["inactive_file"], 0))
    return found


def _numbers(file: Path, unit: int = 1024) -> dict[str, int]:
    """The numbers of a file with a name and a number in each line, in bytes."""
    words = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    return {line[0]: int(line[1]) * unit for line in words if len(line) > 1 and line[1].isdigit()}
