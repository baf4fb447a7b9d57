"""A meter that measures a whole model in vLLM, the engine that will serve it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces import Latency, Meter, Workload
from lnlit.specs import ModelSpec
from lnlit_vllm.process import HOW_TO_INSTALL, PYTHON

_BYTES = {"float32": 4, "bfloat16": 2, "float8": 1}
_LOG_LINES = 15


class VllmMeter(Meter):
    """Measures vLLM with random weights in a separate process, which releases memory and global state when it ends.

    Prefill is the time of a run with one new token, and decode the further time of a run with all of them. The prefix
    cache is off. On a CPU, `OMP_NUM_THREADS` is the number of threads. The environment variable `LNLIT_VLLM_PYTHON`
    names the Python of another environment that has vllm and lnlit-vllm. In float8, which needs a GPU, products are
    computed with a scale per token and per weight matrix, and the KV cache holds float8 too.
    """

    dtypes = tuple(_BYTES)

    def measure(
        self, spec: ModelSpec, folder: Path, workloads: Sequence[Workload], *, dtype: str, samples: int
    ) -> list[Latency]:
        from lnlit.interfaces import kv_elements  # it needs torch, and a socket imports nothing heavy

        if dtype not in _BYTES:
            raise UserError(f"vLLM is measured in {' or '.join(_BYTES)}, got dtype {dtype!r}.")
        if not kv_elements(spec):
            raise UserError("no layer of this model has attention; vLLM serves models with at least one that has.")
        answer = _time_in_process(
            {
                "folder": str(Path(folder).resolve()),
                "dtype": dtype,
                "samples": samples,
                "workloads": [dataclasses.asdict(workload) for workload in workloads],
                "vocab_size": spec.vocab_size,
                "kv_bytes_per_token": kv_elements(spec) * _BYTES[dtype],
            }
        )
        if "error" in answer:
            raise UserError(f"vLLM cannot time {folder}: {answer['error']}")
        return [Latency(tuple(times["prefill_s"]), tuple(times["decode_s"])) for times in answer["latencies"]]


def _time_in_process(request: dict[str, Any]) -> dict[str, Any]:
    python = os.environ.get(PYTHON) or sys.executable
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        command = [python, "-m", "lnlit_vllm.clock", str(answer)]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        try:
            done = subprocess.run(command, input=json.dumps(request), text=True, check=False, **streams)
        except OSError as error:
            raise UserError(f"{python} cannot be run: {error.strerror}. {HOW_TO_INSTALL}") from error
        if answer.is_file():
            return json.loads(answer.read_text(encoding="utf-8"))
    log = done.stdout.rstrip().splitlines()
    if log and "No module named" in log[-1]:
        raise UserError(f"{python}: {log[-1].rpartition(': ')[2]}. {HOW_TO_INSTALL}")
    raise UserError(
        "\n  ".join([f"vLLM ended with exit code {done.returncode}. The end of its log:", *log[-_LOG_LINES:]])
    )
