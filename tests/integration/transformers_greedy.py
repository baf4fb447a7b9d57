"""Run in an environment with any transformers: greedy tokens of several model folders, each with its own code.

python transformers_greedy.py ANSWER < REQUEST
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def greedy(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    """With transformers' own generate and KV cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    model.generation_config.eos_token_id = None  # a token like any other, as everywhere in these tests
    options = {"max_new_tokens": request["new_tokens"], "do_sample": False, "pad_token_id": 0}
    tokens: list[list[int]] = []
    logprobs: list[list[float]] = []
    for prompt in request["prompts"]:
        answer = model.generate(torch.tensor([prompt]), **options, output_logits=True, return_dict_in_generate=True)  # type: ignore[operator]
        tokens.append(answer.sequences[0, len(prompt) :].tolist())
        logprobs.append([float(step.log_softmax(-1).max()) for step in answer.logits])
    return {"tokens": tokens, "logprobs": logprobs}


def main() -> None:
    torch.set_num_threads(1)
    request = json.load(sys.stdin)
    results = {}
    for name, folder in request["folders"].items():
        try:
            results[name] = greedy(folder, request)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
