"""Is a child as fast as it was asked to be? SmolLM2-135M: measured costs, solved for five speed-ups, measured again.

    python tests/benchmarks/bench_speedup.py [--engine native|vllm] [--runs runs/mini]

The stages of `lnlit search` one after the other: a cost table of the engine on this machine, the best children of the
mini library at 1.1 to 2 times the parent's throughput, and all of them timed beside the parent in interleaved rounds of
one run. Prints predicted against measured latency and the kept promise, and appends them to RESULTS.md. Interrupted, it
goes on where it stopped. Twenty minutes on two cores (vllm: half an hour; set LNLIT_VLLM_PYTHON).
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

from lnlit.interfaces import Workload
from lnlit.search.costs import CostTable
from lnlit.search.targets import Deployment, Target
from lnlit.stages.measure import measure
from lnlit.stages.realize import realize
from lnlit.stages.solve import solve
from lnlit.stages.verify import verify

RESULTS = Path(__file__).with_name("RESULTS.md")
ASKED = (1.1, 1.3, 1.5, 1.7, 2.0)
BAR = 0.10


def children(runs: Path, out: Path) -> list[str]:
    """One model folder per asked speed-up."""
    folders = []
    for speedup in ASKED:
        solution, child = out / f"solution-{speedup}.json", out / f"child-{speedup}"
        solve(
            str(solution),
            library=str(runs / "library"),
            scores=str(runs / "scores.jsonl"),
            deployment=Deployment(str(out / "costs.json"), (Target("throughput", min=speedup, of_parent=True),)),
        )
        folders.append(str(realize(str(solution), str(runs / "library"), str(child), overwrite=True)))
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="native")
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"))
    parser.add_argument("--model", default="runs/smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2, help="times per model and round; the best counts")
    parser.add_argument("--workload", type=int, nargs=3, default=(8, 256, 32), metavar=("BATCH", "PROMPT", "NEW"))
    options = parser.parse_args()
    out = options.runs / f"speedup_{options.engine}"
    costs, (batch, prompt, new) = out / "costs.json", options.workload
    timing = {"rounds": options.rounds, "samples": options.samples}
    if not costs.is_file():
        library = str(options.runs / "library")
        measure(library, [Workload(batch, prompt, new)], str(costs), engine=options.engine, **timing)
    models = [options.model, *children(options.runs, out)]
    measured = json.loads(verify(str(costs), models, str(out / "measured.json"), **timing).read_text())
    table = CostTable.read(costs)
    lines = [
        f"\n## {date.today()} asked for and kept speed-ups, {options.engine}\n",
        f"{table.hardware.cpu}, {table.hardware.threads} threads, torch {table.hardware.torch}; {batch} x ({prompt} + "
        f"{new}) tokens, {table.dtype}, {options.rounds} rounds of {table.samples}.\n",
        "| asked | measured | latency, s | predicted, s | error |",
        "|---|---|---|---|---|",
    ]
    parent = measured["models"][0]["measured"]["latency_s"]
    errors = []
    for asked, model in zip((1.0, *ASKED), measured["models"], strict=True):
        found, promised = model["measured"]["latency_s"], model["predicted"]["latency_s"]
        errors.append(promised / found - 1)
        lines.append(f"| {asked:.1f}x | {parent / found:.2f}x | {found:.3f} | {promised:.3f} | {errors[-1]:+.1%} |")
    worst = max(map(abs, errors[1:]))
    verdict = "within" if worst <= BAR else "NOT within"
    lines.append(f"\nLargest error of the {len(ASKED)} children: {worst:.1%}, {verdict} {BAR:.0%}.")
    print(*lines, sep="\n")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
