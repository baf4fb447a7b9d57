"""The small road from end to end: from the library to the table of all its models.

    python tests/benchmarks/bench_pipeline.py [--runs runs/mini]

Runs `lnlit run yaml/mini`, which skips the stages that are finished (remove runs/mini and runs/mini.stages.json to run
all), and appends to RESULTS.md what its files say: the seconds of each stage, the children that the search measured,
how fast the child is, and the evaluation's tables. About an hour and a half on two quiet cores. With `--runs` another
folder of results is read, and nothing is run.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")
#: The figures that tasks are known by, and two cells of the table's head.
OWN = {"accuracy", "obeys the toggle", "obedience", "perplexity", "acc", "number", ":--"}
BAR_HOURS, BAR_SPEED = 3.0, 1.3


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def stages(runs: Path) -> Iterator[str]:
    """The seconds of each stage."""
    ledger = read(runs.with_name(f"{runs.name}.stages.json"))
    seconds = {
        stage: entry["seconds"] for stage, entry in ledger.items() if isinstance(entry, dict) and "seconds" in entry
    }
    if unknown := [stage for stage, spent in seconds.items() if not spent]:
        raise SystemExit(f"{', '.join(unknown)}: interrupted, so the time is not known. Remove {runs} to run all.")
    yield from ("| stage | seconds |", "|---|---|")
    yield from (f"| {stage} | {spent:.0f} |" for stage, spent in seconds.items())
    hours = sum(seconds.values()) / 3600
    verdict = "within" if hours <= BAR_HOURS else "NOT within"
    yield f"\nThese {len(seconds)} stages: {hours:.2f} hours, {verdict} {BAR_HOURS:g}.\n"


def search(runs: Path) -> Iterator[str]:
    """What whole children realise, best first."""
    refined = read(runs / "refined.json")["refined"]
    children = sorted(refined["children"], key=lambda child: child["realised"])
    at_random = [child for child in children if child["is_plain"]]
    yield from ("| child | sum of scores | realised KL |", "|---|---|---|")
    yield from (
        f"| {child['name']} | {child['score']:.4f} | {child['realised']:.4f} |"
        for child in children
        if not child["is_plain"] or child is at_random[0]
    )
    seconds = sum(refined["seconds"].values())
    yield f"\n{len(children)} children measured, {refined['changes_scored']} changes scored, {seconds:.0f} s.\n"


def speed(runs: Path) -> Iterator[str]:
    """How fast each model is, of the first."""
    measured = read(runs / "measured.json")
    models = [(Path(model["name"]).name, model["measured"]["latency_s"]) for model in measured["models"]]
    first = models[0][1]
    yield from (f"| in {measured['engine']}, {measured['dtype']} | seconds | as fast |", "|---|---|---|")
    yield from (f"| {name} | {seconds:.3f} | {first / seconds:.2f}x |" for name, seconds in models)
    times = first / models[1][1]
    yield f"\n{'At least' if times >= BAR_SPEED else 'NOT'} {BAR_SPEED}x the throughput.\n"


def evaluation(runs: Path) -> Iterator[str]:
    """The evaluation's tables of values, and each task's own figure against the parent's, question by question."""
    text = (runs / "eval" / "results.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:4]:
        title, _, body = section.partition("\n")
        rows = body.splitlines()
        if title.startswith("Against"):
            rows = [row for row in rows if not row.startswith("|") or row.split(" | ")[3] in OWN]
        yield from (f"**{title}**", *rows, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path)
    given = parser.parse_args().runs
    runs = given or Path("runs/mini")
    if given is None:
        subprocess.run([sys.executable, "-m", "lnlit.cli.main", "run", "yaml/mini"], check=True)
    lines = [
        f"\n## {date.today()}: the small road, as its files say\n",
        f"{platform.machine()}, torch {torch.__version__}.\n",
        *(line for part in (stages, search, speed, evaluation) for line in part(runs)),
    ]
    print(*lines, sep="\n")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
