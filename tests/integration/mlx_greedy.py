"""Run where mlx-lm is installed: greedy tokens of several model folders, as mlx-lm loads them.

python mlx_greedy.py ANSWER < REQUEST
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx  # pyright: ignore[reportMissingImports]
from mlx_lm.generate import generate_step  # pyright: ignore[reportMissingImports]
from mlx_lm.utils import load_model  # pyright: ignore[reportMissingImports]


def greedy(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    model, _ = load_model(Path(folder))
    tokens: list[list[int]] = []
    logprobs: list[list[float]] = []
    for prompt in request["prompts"]:
        steps = list(generate_step(mx.array(prompt), model, max_tokens=request["new_tokens"]))
        tokens.append([int(token) for token, _ in steps])
        logprobs.append([float(step[int(token)]) for token, step in steps])
    return {"tokens": tokens, "logprobs": logprobs}


def main() -> None:
    mx.set_default_device(mx.cpu)
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
