"""The mini pipeline from end to end: library, block distillation, scores, costs, search, verification, healing.

    python tests/benchmarks/bench_pipeline.py

Runs `lnlit run yaml/mini`, which skips the stages that are finished (remove runs/mini and runs/mini.stages.json to run
all), and appends the seconds that each stage took to RESULTS.md. About 35 minutes on two quiet cores.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")
BAR_MINUTES = 45


def main() -> None:
    subprocess.run([sys.executable, "-m", "lnlit.cli.main", "run", "yaml/mini"], check=True)
    ledger = json.loads(Path("runs/mini.stages.json").read_text(encoding="utf-8"))
    seconds = {stage: entry["seconds"] for stage, entry in ledger.items() if isinstance(entry, dict)}
    if unknown := [stage for stage, spent in seconds.items() if not spent]:
        raise SystemExit(f"{', '.join(unknown)}: interrupted, so the time is not known. Remove runs/mini to run all.")
    minutes = sum(seconds.values()) / 60
    verdict = "within" if minutes <= BAR_MINUTES else "NOT within"
    lines = [
        f"\n## {date.today()} the mini pipeline, SmolLM2-135M, end to end\n",
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads.\n",
        "| stage | seconds |",
        "|---|---|",
        *(f"| {stage} | {spent:.0f} |" for stage, spent in seconds.items()),
        f"\nAll of it: {minutes:.1f} minutes, {verdict} {BAR_MINUTES}.",
    ]
    print(*lines, sep="\n")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
