"""Run where llama.cpp's converter and library are: greedy tokens of several model folders, each converted first.

python llamacpp_greedy.py ANSWER SCRATCH < REQUEST

The vocabulary is left out of the conversion: what tokens stand for has nothing to do with what the layers compute.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import torch
from conversion import get_model_class  # pyright: ignore[reportMissingImports]
from conversion.base import ModelBase  # pyright: ignore[reportMissingImports]
from gguf import LlamaFileType  # pyright: ignore[reportMissingImports]


def converted(folder: Path, file: Path) -> Path:
    """The folder as GGUF in float32, by llama.cpp's own converter."""
    own = get_model_class(ModelBase.load_hparams(folder, False)["architectures"][0])
    changes = {"model_arch": own.model_arch, "set_vocab": lambda self: self._set_vocab_none()}
    without_vocabulary = type(own.__name__, (own,), changes)
    with torch.inference_mode():
        without_vocabulary(folder, LlamaFileType.ALL_F32, file).write()
    return file


def greedy(file: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Prompt in one batch, then token by token, with llama.cpp's KV cache in float32."""
    model = llama_cpp.Llama(str(file), n_ctx=256, n_threads=1, type_k=0, type_v=0, verbose=False)
    context = model.ctx
    tokens: list[list[int]] = []
    logprobs: list[list[float]] = []
    for prompt in request["prompts"]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        new, best, batch = [], [], list(prompt)
        for _ in range(request["new_tokens"]):
            buffer = (llama_cpp.llama_token * len(batch))(*batch)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(buffer, len(batch))):
                raise RuntimeError("llama_decode failed")
            logits = torch.tensor(llama_cpp.llama_get_logits_ith(context, -1)[: request["vocab_size"]])
            top = logits.log_softmax(-1).max(-1)
            new.append(int(top.indices))
            best.append(float(top.values))
            batch = new[-1:]
        tokens.append(new)
        logprobs.append(best)
    return {"tokens": tokens, "logprobs": logprobs}


def in_a_process_of_its_own(file: Path, request: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp aborts where it disagrees."""
    answer = file.with_suffix(".json")
    process = os.fork()
    if process == 0:
        try:
            answer.write_text(json.dumps(greedy(file, request)))
            os._exit(0)
        except Exception as error:
            answer.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
            os._exit(0)
    status = os.waitpid(process, 0)[1]
    return json.loads(answer.read_text()) if status == 0 else {"error": f"llama.cpp ended with status {status}"}


def main() -> None:
    torch.set_num_threads(1)
    request = json.load(sys.stdin)
    results = {}
    for index, (name, folder) in enumerate(request["folders"].items()):
        own = request | {"vocab_size": json.loads((Path(folder) / "config.json").read_text())["vocab_size"]}
        try:
            file = converted(Path(folder), Path(sys.argv[2]) / f"{index}.gguf")
        except (Exception, AssertionError) as error:
            results[name] = {"error": f"conversion: {type(error).__name__}: {error}"}
            continue
        results[name] = in_a_process_of_its_own(file, own)
        file.unlink()
    Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
