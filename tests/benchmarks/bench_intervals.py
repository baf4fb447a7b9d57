"""Are the intervals of evaluations true? Coverage of 95% intervals over simulated evaluations, and what pairing saves.

    python tests/benchmarks/bench_intervals.py

Prints tables and appends them to RESULTS.md. One thread; a minute.
"""

from __future__ import annotations

import itertools
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "eval"))

from simulated import SHAPES, coverage, exact_coverage, paired  # noqa: E402

RESULTS = Path(__file__).with_name("RESULTS.md")
TRIALS = 4000


def means() -> list[str]:
    lines = [f"| questions x samples, mean | {' | '.join(SHAPES)} |", f"|---|{'---|' * len(SHAPES)}"]
    for questions, samples, mean in itertools.product((30, 200), (1, 16), (0.1, 0.5, 0.95)):
        found = [100 * coverage(shape, mean, questions, samples, TRIALS) for shape in SHAPES]
        exact = f" (exactly {100 * exact_coverage(mean, questions):.2f})" if samples == 1 else ""
        cells = " | ".join(f"{each:.1f}" for each in found)
        lines.append(f"| {questions} x {samples}, {mean}{exact} | {cells} |")
        print(lines[-1], flush=True)
    return lines


def differences() -> list[str]:
    shapes = list(SHAPES)[:3]
    lines = [
        "| questions x samples, parent's mean, loss | "
        + " | ".join(f"{shape}: coverage | width" for shape in shapes)
        + " |",
        f"|---|{'---|---|' * len(shapes)}",
    ]
    for questions, samples, (mean, loss) in itertools.product((30, 200), (1, 4), ((0.6, 0.05), (0.9, 0.02))):
        found = [paired(shape, mean, loss, questions, samples, TRIALS) for shape in shapes]
        cells = " | ".join(f"{100 * covered:.1f} | {width:.0%}" for covered, width in found)
        lines.append(f"| {questions} x {samples}, {mean}, {loss} | {cells} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    text = [
        f"\n## {date.today()}: coverage of 95% intervals of evaluations, {TRIALS} simulations each, per cent",
        "Columns: how difficult the questions are. Simulation noise is 0.34 points (one sigma).",
        "",
        *means(),
        "",
        "Paired differences, and the width of their intervals as a share of that of two unpaired means:",
        "",
        *differences(),
    ]
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
