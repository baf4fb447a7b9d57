"""Runs vLLM in this process to sample from a policy. Inputs and outputs are plain data. Does not import lnlit.

The same code runs in the trainer's process and in a separate one (`child.py`).
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXTENSION = "lnlit_vllm.worker.Receiver"
LOGPROBS = "processed_logprobs"
# The engine's loop runs in the process that calls it: nothing outlives that, and starting takes a sixth of the time.
_SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
_CPU_CACHE_BYTES = 2**30
_WEIGHTS, _CACHE = "weights", "kv_cache"  # vLLM's names of what sleeps


def import_vllm() -> None:
    """All of it: `import vllm` alone imports next to nothing."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from vllm import LLM  # noqa: F401  # pyright: ignore[reportMissingImports]


class Core:
    """A vLLM engine for the model in `settings["config"]`, with random weights until `load`. Raises whatever vLLM
    raises."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import_vllm()
        from vllm import LLM  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        cpu = current_platform.is_cpu()
        if cpu and settings["quantization"]:
            raise ValueError(f"quantization {settings['quantization']!r} needs a GPU; on a CPU leave it null.")
        self._sleeps = current_platform.is_sleep_mode_available()
        self._asleep: set[str] = set()
        cache_bytes = settings["kv_cache_memory_bytes"] or (_CPU_CACHE_BYTES if cpu else None)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(settings["config"]), encoding="utf-8")
            self._llm = LLM(
                folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",
                logprobs_mode=LOGPROBS,
                worker_extension_cls=EXTENSION,
                enable_sleep_mode=self._sleeps,
                dtype=settings["dtype"],
                quantization=settings["quantization"],
                max_model_len=settings["max_model_len"],
                max_num_seqs=settings["max_num_seqs"],
                tensor_parallel_size=settings["tensor_parallel_size"],
                gpu_memory_utilization=settings["gpu_memory_utilization"],
                kv_cache_memory_bytes=cache_bytes,
                **({"enforce_eager": cpu} | settings["vllm_args"]),
            )

    def tensor_names(self) -> Iterator[str]:
        for names in self._llm.collective_rpc("lnlit_tensor_names"):
            yield from names

    def load(self, file: str, version: str) -> Iterator[None]:
        """Loads weights from a safetensors file that holds all of `tensor_names`. After an error this object cannot be
        used."""
        self._llm.collective_rpc("lnlit_load", args=(file,))
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not forget the prefixes of the weights before these.")
        self._llm.update_weight_version(version)
        yield from ()

    def generate(self, requests: list[dict[str, Any]], sampling: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields answers as they become ready; `index` is that of the request. After an error this object cannot be
        used."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        self._wake(_CACHE)
        engine = self._llm.llm_engine
        for index, request in enumerate(requests):
            params = SamplingParams(**sampling_params(request, sampling), output_kind=RequestOutputKind.FINAL_ONLY)
            engine.add_request(str(index), {"prompt_token_ids": request["prompt_ids"]}, params)
        while engine.has_unfinished_requests():
            yield from (_answer(output) for output in engine.step() if output.finished)

    def sleep(self) -> Iterator[None]:
        if self._sleeps and _WEIGHTS not in self._asleep:
            self._llm.sleep(level=2)
            self._asleep = {_WEIGHTS, _CACHE}
        yield from ()

    def wake(self) -> Iterator[None]:
        """Allocates memory for the weights. Memory for the cache is allocated by `generate`, because the trainer may
        need it until then."""
        self._wake(_WEIGHTS)
        yield from ()

    def _wake(self, what: str) -> None:
        if what in self._asleep:
            self._llm.wake_up([what])
            self._asleep.remove(what)

    def close(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory  # pyright: ignore[reportMissingImports]

        del self._llm
        cleanup_dist_env_and_memory()
        gc.collect()


def sampling_params(request: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    """Sampling settings in vLLM's terms, shared with its server. End tokens are passed as stop tokens, so that no token
    from the model's configuration ends a completion."""
    return {
        "seed": request["seed"],
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "max_tokens": sampling["max_new_tokens"],
        "stop_token_ids": sampling["end_ids"],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def _answer(output: Any) -> dict[str, Any]:
    found = output.outputs[0]
    return {
        "index": int(output.request_id),
        "token_ids": list(found.token_ids),
        "logprobs": [step[token].logprob for token, step in zip(found.token_ids, found.logprobs, strict=True)],
        "finish_reason": found.finish_reason,
        "versions": [span.version for span in found.weight_versions or ()],
    }
