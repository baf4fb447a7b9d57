"""In place of `lnlit_vllm.core` in the process of `Process`: answers at once, or as a prompt's first token says."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import time
from collections.abc import Iterator
from typing import Any

EXTENSION, LOGPROBS = "", ""
DIES, DIES_ONCE, SLOW, NAN, STALE, FAILS, SLOW_ONCE, DIES_UNNAMED = range(200, 208)


def import_vllm() -> None:
    pass


class Core:
    """Generates the prompt's length, the seed and the first weight of the file that was loaded."""

    def __init__(self, settings: dict[str, Any]) -> None:
        if settings["config"].get("broken"):
            raise ValueError("this config is broken")
        print("the fake has started", flush=True)
        self.names, self.weight, self.version = settings["config"]["tensors"], 0, ""

    def tensor_names(self) -> Iterator[str]:
        yield from self.names

    def load(self, file: str, version: str) -> Iterator[None]:
        with open(file, "rb") as stream:  # noqa: PTH123
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
            stream.seek(header[self.names[0]]["data_offsets"][0], os.SEEK_CUR)
            (weight,) = struct.unpack("<f", stream.read(4))
        if weight < 0:
            raise RuntimeError("the weights are negative")
        self.weight, self.version = int(weight), version
        yield from ()

    def generate(self, requests: list[dict[str, Any]], sampling: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for index, request in enumerate(requests):
            what, seed = request["prompt_ids"][0], request["seed"]
            if what == DIES or (what == DIES_ONCE and _first_time()):
                print(f"dying of seed {seed}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if what == DIES_UNNAMED:
                os.kill(os.getpid(), signal.SIGRTMIN + 1)
            if what == SLOW or (what == SLOW_ONCE and _first_time()):
                print("slow", flush=True)
                time.sleep(60)
            if what == FAILS:
                raise RuntimeError("this prompt cannot be read")
            yield {
                "index": index,
                "token_ids": [len(request["prompt_ids"]), seed, self.weight],
                "logprobs": [math.nan if what == NAN else -0.5] * 3,
                "finish_reason": "length",
                "versions": ["old"] if what == STALE else [self.version],
            }

    def sleep(self) -> Iterator[None]:
        yield from ()

    wake = sleep

    def close(self) -> None:
        pass


def _first_time() -> bool:
    try:
        os.close(os.open(os.environ["FAKE_DIED"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
