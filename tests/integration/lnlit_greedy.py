"""Run in an environment with lnlit: greedy tokens of several model folders, as lnlit itself generates them.

python lnlit_greedy.py ANSWER < REQUEST
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.models.build import build_decoder
from lnlit.models.generate import Sampling, generate


def greedy(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    decoder = build_decoder(read_spec(folder), "cpu")
    load_weights(decoder, folder)
    found = generate(decoder.eval(), request["prompts"], Sampling(request["new_tokens"]), end_ids=())
    return {"tokens": [answer.token_ids for answer in found]}


def main() -> None:
    torch.set_num_threads(1)
    request = json.load(sys.stdin)
    results = {name: greedy(folder, request) for name, folder in request["folders"].items()}
    Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
