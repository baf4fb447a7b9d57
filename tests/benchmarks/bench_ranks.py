"""The memory of each of two ranks, against one rank that does everything: `BlockDistill`, by DDP, FSDP2 and tensor
parallelism, and `score`.

    python tests/benchmarks/bench_ranks.py

The parent has random weights, 24 layers of 48 MiB in fp32, so that it is large beside what the interpreter takes. Each
run is a gloo process of its own per rank. Measured is the high water mark of its resident memory (VmHWM) during the
work, as it is, and less what the process held before it with everything imported. glibc is told to give back what is
freed. `BlockDistill` trains candidates that are small beside the parent, so that the figure is the parent's. Three
minutes, 4 GiB.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "stages")]
MIB = 2**20
LAYERS = 24


def status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def block_distill(folder: Path, out: Path, ranks: int, how: str) -> None:
    import lightning as L
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    from lnlit.data.sources import JsonlSource
    from lnlit.data.text_data import TextData
    from lnlit.modules.block_distill import BlockDistill
    from lnlit.modules.optim import AdamW

    only = ("layer_03/attention/*", "layer_03/ffn/*", "layer_10/ffn/*")
    module = BlockDistill(
        str(folder / "model"), str(folder / "library"), str(out), AdamW(1e-4), only=only, layers_at_once=1
    )
    strategies = {
        "": lambda: "auto",
        "DDP": lambda: DDPStrategy(process_group_backend="gloo"),
        "FSDP2": lambda: ModelParallelStrategy(2, 1, process_group_backend="gloo"),
        "tensor parallel": lambda: ModelParallelStrategy(1, 2, process_group_backend="gloo"),
    }
    rows = 1 if how in ("DDP", "FSDP2") else 2
    data = TextData(str(folder / "model"), JsonlSource(str(folder / "text.jsonl")), 32, rows)
    L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategies[how](),
        max_epochs=2,
        limit_train_batches=2,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=out.parent,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
    ).fit(module, data)


def score(folder: Path, out: Path, ranks: int, how: str) -> None:
    from test_score_from_disk import run  # type: ignore

    run(folder, out, only=["layer_03/*", "layer_10/ffn/*"])


WORK = {"BlockDistill": block_distill, "score": score}
#: (work, ranks, how they divide it); the first of a work is what the others are compared with.
RUNS = [
    *(("BlockDistill", 1, ""), ("BlockDistill", 2, "DDP"), ("BlockDistill", 2, "FSDP2")),
    *(("BlockDistill", 2, "tensor parallel"), ("score", 1, ""), ("score", 2, "")),
]


def rank(name: str, folder: Path, out: Path, how: str) -> None:
    """One rank's work. Prints what this process held before, and its high water mark."""
    import torch

    for name_of_module in ("lnlit.modules.block_distill", "lnlit.stages.score"):  # imports are no matter of the parent
        import_module(name_of_module)

    torch.set_num_threads(1)
    before, ranks = status("VmRSS"), int(os.environ.get("WORLD_SIZE", 1))
    Path("/proc/self/clear_refs").write_text("5")
    WORK[name](folder, out, ranks, how)
    print(f"before {before} peak {status('VmHWM')}", flush=True)


def started(name: str, folder: Path, out: Path, ranks: int, how: str) -> list[tuple[int, int]]:
    """(MiB before the work, MiB at its peak) of each rank."""
    import warm

    trimmed = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024), "MALLOC_TRIM_THRESHOLD_": str(64 * 1024)}
    common = {**os.environ, **trimmed, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    if ranks > 1:
        common |= {"MASTER_PORT": str(warm.free_port()), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        common |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    command = [sys.executable, __file__, "--rank", name, str(folder), str(out), how]
    processes = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(number), "LOCAL_RANK": str(number)} if ranks > 1 else common,
            text=True,
            stdout=subprocess.PIPE,
        )
        for number in range(ranks)
    ]
    said = [process.communicate()[0] for process in processes]
    found = [re.search(r"before (\d+) peak (\d+)", text) for text in said]
    if not all(found):
        raise SystemExit("a rank failed")
    return [(int(each[1]), int(each[2])) for each in found if each]


def main() -> None:
    import torch
    from safetensors.torch import save_file
    from test_score_from_disk import big_parent  # type: ignore

    from lnlit.search.library import CALIBRATION

    print("| work | ranks | held before, MiB | peak, MiB | of one rank's | peak less before, MiB | of one rank's |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = big_parent(folder, LAYERS)
        save_file({"tokens": torch.arange(64, dtype=torch.int32).view(2, 32)}, folder / "library" / CALIBRATION)
        alone: dict[str, tuple[int, int]] = {}
        for name, ranks, how in RUNS:
            out = folder / f"{name}-{ranks}{how}"
            before, peak = max(started(name, folder, out, ranks, how), key=lambda each: each[1])
            whole, own = alone.setdefault(name, (peak, peak - before))
            shares = f"{peak / whole:.1%}", f"{(peak - before) / own:.1%}"
            print(
                f"| {name} | {ranks} {how} | {before} | {peak} | {shares[0]} | {peak - before} | {shares[1]} |",
                flush=True,
            )
        print(f"The parent's layers are {size / MIB:.0f} MiB in fp32.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
    else:
        main()
