"""How fast is a block library built and distilled? SmolLM2-135M and the default candidates.

    python tests/benchmarks/bench_blocks.py MODEL TEXT [--threads 2] [--tokens 2048] [--steps 4] [--tiny]

Builds the library on 4 rows of 256 tokens of TEXT (a .txt file), then times steps of blockwise local distillation of
every candidate of every layer in bf16-mixed, the first one left out as warm-up. Prints the figures and appends them to
RESULTS.md. `--tiny` takes a two-layer model instead and appends nothing. About 4 minutes on two cores.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from statistics import fmean, median
from typing import Any

import lightning as L
import torch

from lnlit.data.sources import TextFileSource
from lnlit.data.text import TextSample
from lnlit.data.text_data import TextData
from lnlit.modules.block_distill import BlockDistill
from lnlit.search.choice import SLOTS
from lnlit.search.library import Library
from lnlit.search.space import Candidates
from lnlit.stages.library import build_library
from lnlit.testing.tiny import tiny_folder

RESULTS = Path(__file__).with_name("RESULTS.md")


class Clock(L.Callback):
    """Seconds of each step, and those of this process's threads together."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.wall.append(time.perf_counter() - self.start[0])
        self.cpu.append(time.process_time() - self.start[1])


def distil(model: Path, library: Path, text: Path, out: Path, tokens: int, steps: int) -> Clock:
    length = min(512, tokens)
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=steps,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=out,
    )
    data = TextData(str(model), TextFileSource(str(text)), length, tokens // length)
    trainer.fit(BlockDistill(str(model), str(library), str(out / "trained")), data)
    return clock


def initial_errors(library: Library) -> str:
    errors: dict[str, list[float]] = defaultdict(list)
    for layer in library.layers:
        for slot in SLOTS:
            for name, variant in getattr(layer, slot).items():
                if variant.init_error is not None:
                    errors[f"{slot} {name}"].append(variant.init_error)
    rows = [f"| {name} | {fmean(values):.4f} | {median(values):.4f} |" for name, values in errors.items()]
    return "\n".join(["| candidate | mean initial error | median |", "|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        model = tiny_folder(out / "tiny") if given.tiny else given.model
        candidates = Candidates(width_multiple=16) if given.tiny else Candidates()
        length, tokens = (64, 128) if given.tiny else (256, given.tokens)
        sample = TextSample(TextFileSource(str(given.text)), rows=1, length=4 * length)
        start = time.perf_counter()
        library = Library.open(build_library(str(model), sample, str(out / "library"), candidates))
        built = time.perf_counter() - start
        size = sum(file.stat().st_size for file in library.folder.iterdir()) / 2**20
        clock = distil(model, library.folder, given.text, out, tokens, given.steps)
        section = f"""
## Block library and its distillation, {date.today()}

{model.name}, {given.threads} threads, {platform.machine()}: `bench_blocks.py --steps {given.steps} --tokens {tokens}`.

Library from {sample.length} tokens, fp32: {built:.1f} s, {size:.0f} MiB. Distillation of all layers' candidates
in bf16-mixed: {fmean(clock.wall[1:]):.1f} s ({fmean(clock.cpu[1:]):.1f} s of all threads) per step of {tokens} tokens.

{initial_errors(library)}
"""
    print(section)
    if not given.tiny:
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(section)


if __name__ == "__main__":
    main()
