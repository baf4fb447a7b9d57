"""Run inside vLLM's environment: greedy tokens of several model folders, one engine after another.

python vllm_greedy.py ANSWER < REQUEST
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import transformers.dynamic_module_utils
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.distributed import cleanup_dist_env_and_memory  # pyright: ignore[reportMissingImports]
from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]


def greedy(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    engine = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=128,
        max_num_seqs=len(request["prompts"]),  # what it warms up with
        kv_cache_memory_bytes=2**26,  # a gigabyte takes longer to clear than all prompts to answer
        trust_remote_code=request["trust_remote_code"],
    )
    started = time.perf_counter() - start
    params = SamplingParams(
        temperature=0.0, max_tokens=request["new_tokens"], ignore_eos=True, detokenize=False, logprobs=0
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
    answers = [answer.outputs[0] for answer in engine.generate(prompts, params, use_tqdm=False)]
    return {
        "tokens": [list(answer.token_ids) for answer in answers],
        "logprobs": [
            [step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs, strict=True)]
            for answer in answers
        ],
        "start_s": started,
    }


def main() -> None:
    request = json.load(sys.stdin)
    results = {}
    # What a process that forked for this one read from its environment.
    transformers.dynamic_module_utils.HF_MODULES_CACHE = os.environ["HF_MODULES_CACHE"]
    # Without Triton each engine would look through all modules for kernels to replace.
    once = functools.cache(current_platform.register_triton_kernel_overrides)
    current_platform.register_triton_kernel_overrides = once
    for name, folder in request["folders"].items():
        gc.collect()
        gc.freeze()  # an engine collects garbage seven times, and need not look at what was there before
        try:
            results[name] = greedy(folder, request)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
            cleanup_dist_env_and_memory()
    Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
