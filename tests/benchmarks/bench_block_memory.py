"""The peak memory of each rank in block distillation, on one rank and on two that divide parent and candidates.

    python tests/benchmarks/bench_block_memory.py

Measured is the peak of a process's resident memory during a run of two steps, less what it held after the same run of a
tiny model, which has imported everything. glibc is told to give back what is freed. Appends a table to RESULTS.md.
Needs 3 GiB of memory and two minutes on two cores.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from lnlit.data.sources import JsonlSource
from lnlit.data.text import TextSample
from lnlit.data.text_data import TextData
from lnlit.modules.block_distill import BlockDistill
from lnlit.search.choice import At
from lnlit.search.library import Library
from lnlit.search.space import Candidates
from lnlit.specs import BlockSpec, ModelSpec, PartSpec
from lnlit.stages.library import build_library
from lnlit.testing.tiny import tiny_folder

RESULTS = Path(__file__).with_name("RESULTS.md")
MIB = 2**20
ROWS, LENGTH = 4, 128
#: hidden size, layers, FFN width
SIZES = {"tiny": (64, 2, 128), "real": (768, 12, 3072)}


def write(folder: Path) -> None:
    texts = [{"text": f"{number} " + "the quick brown fox jumps over the lazy dog. " * 4} for number in range(64)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    for name, (hidden, layers, width) in SIZES.items():
        attention = PartSpec("gqa", {"num_heads": hidden // 32, "num_kv_heads": hidden // 32, "head_dim": 32})
        block = BlockSpec(attention, PartSpec("swiglu", {"intermediate_size": width}))
        tiny_folder(folder / name, ModelSpec(512, hidden, (block,) * layers, 512))
        sample = TextSample(JsonlSource(str(folder / "text.jsonl")), rows=2, length=LENGTH)
        some = Candidates(kv_heads=[], widths=(0.5, 0.25), width_multiple=16, attention_stubs=(), ffn_stubs=())
        build_library(str(folder / name), sample, str(folder / f"{name}_library"), some)


def fit(folder: Path, name: str, ranks: int) -> None:
    """Every rank of a run calls this."""
    data = TextData(str(folder / name), JsonlSource(str(folder / "text.jsonl")), LENGTH, ROWS // ranks)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        max_steps=2,
        use_distributed_sampler=False,
        default_root_dir=folder / "run",
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    out = folder / f"{name}-{ranks}"
    trainer.fit(BlockDistill(str(folder / name), str(folder / f"{name}_library"), str(out), batch_tokens=LENGTH), data)


def peak(folder: Path, ranks: int) -> int:
    torch.set_num_threads(1)
    fit(folder, "tiny", ranks)
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    fit(folder, "real", ranks)
    return status("VmHWM") - before


def status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measured(folder: Path, ranks: int) -> list[float]:
    """The peak of each rank in MiB."""
    trim = {f"MALLOC_{name}_THRESHOLD_": str(64 * 1024) for name in ("MMAP", "TRIM")}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *start, __file__, str(folder), str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **trim}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [int(found) / MIB for found in re.findall(r"peak (\d+)", done.stdout)]


def apart(folder: Path) -> float:
    """The largest difference of a trained weight of one rank and of two."""
    one, two = (Library.open(folder / f"real-{ranks}") for ranks in (1, 2))
    found = 0.0
    for layer, variants in enumerate(one.layers):
        for name, variant in variants.ffn.items():
            if not variant.parent:
                mine, theirs = (library.weights(At(layer, "ffn", name)) for library in (one, two))
                found = max(found, *((mine[key].float() - theirs[key].float()).abs().max().item() for key in mine))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder)
        one, two = measured(folder, 1), measured(folder, 2)
        share, difference = max(two) / one[0], apart(folder)
    line = f"one rank {one[0]:,.0f} MiB, two ranks {' and '.join(f'{each:,.0f}' for each in two)} MiB each: {share:.0%}"
    print(f"{line}; weights differ by {difference:.1e} at most")
    hidden, layers, width = SIZES["real"]
    about = f"{layers} layers of width {hidden} with FFNs of {width}, two candidates each; {platform.machine()}."
    with RESULTS.open("a") as file:
        file.write(
            f"\n## {date.today()}: memory of block distillation on ranks\n\n{about} Peak of each process: {line}; "
        )
        file.write(f"trained weights differ by {difference:.1e} at most.\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print("peak", peak(Path(sys.argv[1]), int(sys.argv[2])), flush=True)
    else:
        main()
