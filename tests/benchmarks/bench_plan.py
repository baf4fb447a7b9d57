"""`lnlit plan` against measured memory: twelve training runs of mid-size models with random weights on a CPU.

    python tests/benchmarks/bench_plan.py [NUMBER ...]

Each run is a process of its own that takes two optimizer steps. Measured is the peak of its resident memory less what
it held after the same run of a tiny model, which has imported everything; planned is the largest phase of `lnlit.plan`.
glibc is told to give back what is freed (MALLOC_MMAP_THRESHOLD_): by default it keeps blocks of up to 32 MiB, so that a
process holds more than it uses. Appends a table to RESULTS.md unless numbers choose some of the runs. Needs 4 GiB of
memory and five minutes on two cores.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
MIB = 2**20
#: hidden size, layers, FFN width, vocabulary
TINY = 128, 2, 256, 512
SMALL, MIDDLE, WIDE = (512, 6, 2048, 16000), (768, 6, 2048, 16000), (1024, 4, 3072, 8000)
PAIRS = {"sequence_length": 512, "micro_batch_size": 1, "completions": 2, "packing": False}
PACKED = {"sequence_length": 1024, "micro_batch_size": 1, "packing": True}


def run(model: str, method: str = "SFT", data: str = "ChatData", **changes: Any) -> dict[str, Any]:
    return {"model": model, "method": method, "data": data, **changes}


RUNS: dict[str, dict[str, Any]] = {
    "SFT, fp32": run("middle", rows={**PACKED, "sequence_length": 512}),
    "SFT, bf16, checkpointing": run(
        "middle",
        rows={**PACKED, "sequence_length": 2048},
        precision="bf16-mixed",
        runtime={"activation_checkpointing": True},
    ),
    "SFT, bf16, two micro-batches": run("small", rows=PACKED, precision="bf16-mixed", accumulate=2),
    "SFT, LoRA, fp32": run("wide", rows=PACKED, init={"lora": {"rank": 16}}),
    "SFT, LoRA, bf16": run("wide", rows=PACKED, precision="bf16-mixed", init={"lora": {"rank": 16}}),
    "SFT, LoRA on a base in bf16": run(
        "wide", rows=PACKED, precision="bf16-mixed", init={"lora": {"rank": 16, "base_dtype": "bfloat16"}}
    ),
    "Distill, hidden cosine, bf16": run(
        "small", "Distill", rows=PACKED, precision="bf16-mixed", init={"teacher": "teacher"}
    ),
    "pretraining, fp32, checkpointing": run(
        "wide",
        "Distill",
        "TextData",
        rows={"sequence_length": 1024, "micro_batch_size": 1},
        init={"teacher": None, "kl_weight": 0.0, "cosine_weight": 0.0, "lm_weight": 1.0},
        runtime={"activation_checkpointing": True},
    ),
    "RPO with a reference, fp32": run(
        "small",
        "RPO",
        "PreferenceData",
        rows=PAIRS,
        init={"beta": 0.1},
    ),
    "reward model, bf16": run(
        "middle",
        "RewardModel",
        "PreferenceData",
        rows=PAIRS,
        precision="bf16-mixed",
    ),
    "RPO with a reference, LoRA, fp32": run(
        "wide",
        "RPO",
        "PreferenceData",
        rows=PAIRS,
        init={"beta": 0.1, "lora": {"rank": 16}},
    ),
    "reward model, LoRA, bf16": run(
        "wide",
        "RewardModel",
        "PreferenceData",
        rows=PAIRS,
        precision="bf16-mixed",
        init={"lora": {"rank": 16}},
    ),
}


def spec(hidden: int, layers: int, width: int, vocabulary: int):
    from lnlit.specs import BlockSpec, ModelSpec, PartSpec

    attention = PartSpec("gqa", {"num_heads": hidden // 64, "num_kv_heads": hidden // 128, "head_dim": 64})
    block = BlockSpec(attention, PartSpec("swiglu", {"intermediate_size": width}))
    return ModelSpec(vocabulary, hidden, (block,) * layers, 8192)


def write_models(folder: Path) -> None:
    from lnlit.testing.tiny import tiny_folder

    for name, sizes in {"tiny": TINY, "small": SMALL, "middle": MIDDLE, "wide": WIDE}.items():
        tiny_folder(folder / name, spec(*sizes))
    tiny_folder(folder / "teacher", spec(512, 6, 4096, 16000))  # a teacher of the same hidden size


def write_rows(folder: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 40
    chats = [{"messages": [{"role": "user", "content": "go on"}, {"role": "assistant", "content": text}]}] * 64
    pairs = [{"prompt": "go on", "completions": [text[:480], text[9:489]], "rewards": [1.0, 0.0]}] * 64
    for name, rows in {"ChatData": chats, "TextData": [{"text": text}] * 64, "PreferenceData": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def configuration(folder: Path, chosen: dict[str, Any], is_tiny: bool = False) -> Path:
    """The YAML (which JSON is) of one run, or of the same with a tiny model."""
    model = str(folder / ("tiny" if is_tiny else chosen["model"]))
    init = {
        "model": model,
        "optimizer": {"learning_rate": 1e-4},
        "runtime": chosen.get("runtime", {}),
        **chosen.get("init", {}),
    }
    if isinstance(init.get("teacher"), str):
        init["teacher"] = model if is_tiny else str(folder / init["teacher"])
    source = {"class_path": "jsonl", "init_args": {"paths": str(folder / f"{chosen['data']}.jsonl")}}
    trainer = {
        "accelerator": "cpu",
        "max_steps": 2,
        "precision": chosen.get("precision", "32-true"),
        "accumulate_grad_batches": chosen.get("accumulate", 1),
        "default_root_dir": str(folder / "run"),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "logger": False,
    }
    data = {"class_path": chosen["data"], "init_args": {"tokenizer": model, "train": source, **chosen["rows"]}}
    file = folder / ("tiny.yaml" if is_tiny else "run.yaml")
    file.write_text(
        json.dumps({"trainer": trainer, "model": {"class_path": chosen["method"], "init_args": init}, "data": data})
    )
    return file


def measured(file: Path) -> int:
    """The peak of resident memory of this process in bytes during the fit, less that after a tiny one."""
    import gc

    import lnlit

    lnlit.fit(str(file.with_name("tiny.yaml")))
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    lnlit.fit(str(file))
    return status("VmHWM") - before


def status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def compare(name: str, folder: Path) -> tuple[float, float, str]:
    """(planned, measured, what the plan says is largest) in MiB."""
    import lnlit
    from lnlit.planning.plan import largest

    configuration(folder, RUNS[name], is_tiny=True)
    file = configuration(folder, RUNS[name])
    (plan,) = lnlit.plan(str(file), gpu="cpu")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024), "MALLOC_TRIM_THRESHOLD_": str(64 * 1024)}
    command = [sys.executable, __file__, "--measure", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = int(done.stdout.rpartition("peak ")[2])
    phase = max(plan.phases.values(), key=lambda parts: sum(parts.values()))
    return plan.peak_bytes / MIB, found / MIB, largest(phase)


def main(chosen: list[int]) -> None:
    names = [name for number, name in enumerate(RUNS, start=1) if not chosen or number in chosen]
    lines = ["| run | planned MiB | measured MiB | planned / measured |", "|---|---|---|---|"]
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder)
        write_rows(folder)
        for name in names:
            planned, found, parts = compare(name, folder)
            worst = max(worst, abs(planned / found - 1))
            lines.append(f"| {name} | {planned:,.0f} | {found:,.0f} | {planned / found:.3f} |")
            print(lines[-1], parts, flush=True)
    print(f"off by {worst:.1%} at most")
    if not chosen:
        about = f"{platform.machine()}, two optimizer steps each; peak resident memory less that after a tiny run. "
        with RESULTS.open("a") as file:
            table = "\n".join(lines)
            title = f"## `lnlit plan` against measured memory, {date.today()}"
            file.write(f"\n{title}\n\n{about}Off by {worst:.1%} at most.\n\n{table}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print("peak", measured(Path(sys.argv[2])))
    else:
        main([int(number) for number in sys.argv[1:]])
