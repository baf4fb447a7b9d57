"""`lnlit search score` in two processes, as a script: python -m torch.distributed.run ... score_on_ranks.py FOLDER

One process group serves all runs: starting Python takes longer than they do. What each rank saw is in NAME-RANK.json.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from lnlit.checkpoint.load import StoredLayers
from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.errors import UserError
from lnlit.models import layerwise
from lnlit.models.block import Block
from lnlit.models.decoder import Decoder
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.search.choice import At
from lnlit.search.score import Score, Scorer
from lnlit.stages.score import score

RANK = int(os.environ.get("RANK", 0))
#: Seconds after which a process that still waits for the other says where, and ends.
LIMIT_S = 500


def run(folder: Path, out: Path, **options: Any) -> Path:
    """A run of this process alone, or of all if they are several."""
    data = TextSample(JsonlSource(str(folder / "text.jsonl")), rows=3, length=32)
    settings = {"dtype": "float32", "batch_tokens": 64, **options}
    return score(str(folder / "model"), str(folder / "library"), data, str(out), **settings)


def held(decoder: Decoder) -> list[int]:
    """The layers that have weights."""
    return [
        index for index, block in enumerate(decoder.layers) if any(not weight.is_meta for weight in block.parameters())
    ]


def watched(folder: Path, name: str, **options: Any) -> None:
    """A run, and what this rank read, held and scored."""
    seen: dict[str, Any] = {"read": [], "open": [], "closed": [], "passes": []}
    read, layer, scores = StoredLayers.__call__, LayerwiseDecoder.layer, Scorer.scores

    def noted_read(self: StoredLayers, index: int) -> dict[str, torch.Tensor]:
        seen["read"].append(index)
        return read(self, index)

    @contextmanager
    def noted_layer(self: LayerwiseDecoder, index: int) -> Iterator[Block]:
        with layer(self, index) as block:
            seen["open"].append([index, held(self.decoder)])
            yield block

    def noted_scores(self: Scorer, candidates: list[At]) -> list[Score]:
        found = scores(self, candidates)
        seen["passes"].append([len(candidates), len(found)])
        seen["closed"].append(held(self.parent.decoder))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredLayers, "__call__", noted_read)
        patch.setattr(LayerwiseDecoder, "layer", noted_layer)
        patch.setattr(Scorer, "scores", noted_scores)
        run(folder, folder / name / "scores.jsonl", **options)
    told(folder, name, seen)


def told(folder: Path, name: str, seen: object) -> None:
    (folder / f"{name}-{RANK}.json").write_text(json.dumps(seen))


def failing(folder: Path, name: str, method: str, calls: int, error: Callable[[], BaseException]) -> None:
    """A run that fails on this rank after so many calls of a method of `Scorer`; if there are -1, not."""
    given, left = getattr(Scorer, method), calls

    def some(self: Scorer, argument: Any) -> Any:
        nonlocal left
        if left == 0:
            raise error()
        left -= 1
        return given(self, argument)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, method, some)
        run(folder, folder / name / "scores.jsonl")


def dies() -> BaseException:
    os._exit(0)


def main(folder: Path) -> None:
    watched(folder, "whole")
    watched(folder, "block", granularity="block", only=["layer_01/*", "layer_03/*"])
    watched(folder, "half", dtype="bfloat16")
    watched(folder, "single", only=["layer_03/ffn/noop"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise, "free_bytes", lambda device: 1)
        watched(folder, "disk", only=["layer_00/*", "layer_03/*"])
    watched(folder, "left-by-one")
    with pytest.raises(KeyboardInterrupt):
        failing(folder, "stopped", "scores", 3, KeyboardInterrupt)
    distributed.barrier()
    if RANK == 0:
        shutil.copytree(folder / "stopped", folder / "stopped-for-one")
    distributed.barrier()
    watched(folder, "stopped")
    in_the_third_pass = 7 if RANK == 1 else -1
    with pytest.raises(UserError) as refused:
        failing(folder, "refused", "load", in_the_third_pass, lambda: UserError("it is lost."))
    told(folder, "refused", str(refused.value))
    with pytest.raises(UserError) as ended:  # rank 1 is not there any more
        failing(folder, "died", "load", in_the_third_pass, dies)
    told(folder, "died", str(ended.value))
    os._exit(0)  # a process group of which half is dead does not end


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    main(Path(sys.argv[1]))
