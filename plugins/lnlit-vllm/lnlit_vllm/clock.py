"""The program that measures latencies for `VllmMeter`: reads a JSON request on stdin and writes a JSON answer to the
file that it names. Does not import lnlit."""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

# One process, so that nothing outlives it, with as many threads as OMP_NUM_THREADS says.
_SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
#: More than vLLM's largest KV-cache block, which is what a request's cache is rounded up to.
_SPARE_TOKENS = 512


def main() -> None:
    request = json.load(sys.stdin)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import vllm  # noqa: F401  # pyright: ignore[reportMissingImports]  # its absence ends this process, with the reason

    try:
        engine = _engine(request)
    except Exception as error:
        answer: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"}
    else:
        answer = {"latencies": [_latency(engine, request, workload) for workload in request["workloads"]]}
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


def _engine(request: dict[str, Any]) -> Any:
    from vllm import LLM  # pyright: ignore[reportMissingImports]
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    gc.freeze()  # vLLM collects garbage while it starts, and need not look at what was imported
    workloads = request["workloads"]
    tokens = max(w["batch_size"] * (w["prompt_tokens"] + w["new_tokens"] + _SPARE_TOKENS) for w in workloads)
    return LLM(
        request["folder"],
        load_format="dummy",
        **_precision(request["dtype"]),
        skip_tokenizer_init=True,
        generation_config="vllm",
        enable_prefix_caching=False,
        enforce_eager=current_platform.is_cpu(),
        max_model_len=max(w["prompt_tokens"] + w["new_tokens"] for w in workloads),
        max_num_seqs=max(w["batch_size"] for w in workloads),
        kv_cache_memory_bytes=tokens * request["kv_bytes_per_token"],
    )


def _precision(dtype: str) -> dict[str, str]:
    if dtype != "float8":
        return {"dtype": dtype}
    return {"dtype": "bfloat16", "quantization": "fp8_per_tensor", "kv_cache_dtype": "fp8"}


def _latency(engine: Any, request: dict[str, Any], workload: dict[str, int]) -> dict[str, list[float]]:
    new_tokens = workload["new_tokens"]
    draw = random.Random(0)
    prompts = [
        {"prompt_token_ids": [draw.randrange(request["vocab_size"]) for _ in range(workload["prompt_tokens"])]}
        for _ in range(workload["batch_size"])
    ]
    _seconds(engine, prompts, new_tokens)  # to warm up
    prefill_s, decode_s = [], []
    for _ in range(request["samples"]):
        prefill_s.append(_seconds(engine, prompts, 1))
        whole_s = _seconds(engine, prompts, new_tokens) if new_tokens > 1 else prefill_s[-1]
        decode_s.append(max(whole_s - prefill_s[-1], 0.0))  # of two nearly equal runs the longer may end first
    return {"prefill_s": prefill_s, "decode_s": decode_s}


def _seconds(engine: Any, prompts: list[dict[str, list[int]]], new_tokens: int) -> float:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
