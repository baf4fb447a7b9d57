"""The environment that vLLM lives in, and how its processes are started: they begin with vLLM imported."""

from __future__ import annotations

import os
from pathlib import Path

import warm

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "plugins/lnlit-vllm"
PYTHON = Path(os.environ.get("LNLIT_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def warm_python() -> str:
    return warm.vllm_python(str(PYTHON), SETTINGS)
