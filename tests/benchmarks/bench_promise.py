"""Is a child that was asked to be 1.3 times as fast really that fast? Search, measure, and search again if it is not.

    python tests/benchmarks/bench_promise.py [--engine native|vllm] [--asked 1.3] [--runs runs/mini]

Reads what bench_speedup.py left (a cost table of the engine on this machine). Each attempt is timed beside the parent
in interleaved rounds of one run; the next one is corrected by it (`deployment.corrected_by` of `lnlit search solve`).
Prints all attempts and appends them to RESULTS.md. Three minutes each with vllm.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

from lnlit.search.costs import CostTable
from lnlit.search.targets import Deployment, Target
from lnlit.stages.realize import realize
from lnlit.stages.solve import solve
from lnlit.stages.verify import verify

RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="native")
    parser.add_argument("--asked", type=float, default=1.3)
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"))
    parser.add_argument("--model", default="runs/smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--attempts", type=int, default=3)
    options = parser.parse_args()
    out, library = options.runs / f"speedup_{options.engine}", str(options.runs / "library")
    costs, scores = str(out / "costs.json"), str(options.runs / "scores.jsonl")
    table = CostTable.read(Path(costs))
    lines = [
        f"\n## {date.today()} a promise of {options.asked}x the throughput, {options.engine}\n",
        f"{table.hardware.cpu}, {table.hardware.threads} threads, torch {table.hardware.torch}, {table.dtype}; "
        f"{options.rounds} rounds of {options.samples}.\n",
        "| attempt | summed score | predicted | measured |",
        "|---|---|---|---|",
    ]
    target, measured = Target("throughput", min=options.asked, of_parent=True), None
    timing = {"rounds": options.rounds, "samples": options.samples}
    for attempt in range(1, options.attempts + 1):
        solution, child = out / f"promise-{attempt}.json", out / f"promise-{attempt}"
        deployment = Deployment(costs, (target,), corrected_by=measured)
        solve(str(solution), library=library, scores=scores, deployment=deployment)
        realize(str(solution), library, str(child), overwrite=True)
        times = out / f"promise-{attempt}.measured.json"
        measured = str(verify(costs, [options.model, str(child)], str(times), **timing))
        parent, found = json.loads(times.read_text())["models"]
        kept, promised = (found[side]["throughput"] / parent[side]["throughput"] for side in ("measured", "predicted"))
        best = json.loads(solution.read_text())["solutions"][0]["score"]
        lines.append(f"| {attempt} | {best:.4f} | {promised:.2f}x | {kept:.2f}x |")
        if kept >= options.asked:
            break
    verdict = "kept" if kept >= options.asked else "NOT kept"
    lines.append(f"\n{verdict} with attempt {attempt}.")
    print(*lines, sep="\n")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
