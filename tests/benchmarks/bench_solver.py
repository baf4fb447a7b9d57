"""Time to proof of the exact solver, and how far the baselines are from it, on problems as large as a 70B or 405B.

    python tests/benchmarks/bench_solver.py [--tiny]

Synthetic libraries of 54 choices per layer: variants of equal cost in every layer, heavy-tailed scores that grow with
what is removed, layers of very different sensitivity (first and last most), three budgets that all bind. Prints medians
over seeds and appends them to RESULTS.md. One thread; two minutes. The import of CVXPY is timed by itself and added.
Times are CPU seconds of the one thread, which are those of the clock on a quiet machine.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

from lnlit import registry
from lnlit.interfaces import Budget, Choice, Problem

RESULTS = Path(__file__).with_name("RESULTS.md")
BASELINES = ("greedy", "ratio_greedy", "uniform", "random")
HIDDEN, WIDTH, HEAD, HEADS = 8192, 28672, 128, 64
KV_HEADS = {"kv8": 8, "kv4": 4, "kv2": 2, "kv1": 1, "linear": 0, "noop": 0}
WIDTHS = {
    "i100": 1.0,
    "i87": 0.87,
    "i75": 0.75,
    "i50": 0.5,
    "i25": 0.25,
    "i20": 0.2,
    "i10": 0.1,
    "linear": 0,
    "noop": 0,
}
CACHED_TOKENS = 256 * 1200


def attention_parameters(name: str) -> int:
    full = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_HEADS[name] * HEAD
    return {"noop": 0, "linear": HIDDEN**2}.get(name, full)


def ffn_parameters(name: str) -> int:
    return {"noop": 0, "linear": HIDDEN**2}.get(name, int(3 * HIDDEN * WIDTH * WIDTHS[name]))


def costs_of(draw: random.Random) -> dict[str, dict[str, float]]:
    """Costs by variant: FP8 weights and cache in MiB, a latency that is nearly proportional to bytes, parameters."""
    table = {}
    for name, heads in KV_HEADS.items():
        size, cache = attention_parameters(name), CACHED_TOKENS * 2 * heads * HEAD
        speed = (size + 0.6 * cache) * draw.lognormvariate(0, 0.05)
        table[f"a:{name}"] = {"memory_mib": (size + cache) / 2**20, "latency_s": speed / 3e12, "parameters": size}
    for name in WIDTHS:
        size = ffn_parameters(name)
        speed = size * draw.lognormvariate(0, 0.05)
        table[f"f:{name}"] = {"memory_mib": size / 2**20, "latency_s": speed / 3e12, "parameters": size}
    return table


def make(layers: int, seed: int, shares: tuple[float, float, float], **options) -> Problem:
    draw = random.Random(seed)
    costs, found = costs_of(draw), []
    for layer in range(layers):
        depth = layer / max(layers - 1, 1)
        ends = 1 + 4 * math.exp(-12 * depth) + 2 * math.exp(25 * (depth - 1))
        ffn_scale = 0.02 * draw.lognormvariate(0, 0.9) * ends
        attention_scale = 0.004 * draw.lognormvariate(0, 1.1) * (1.2 - depth) * math.sqrt(ends)
        powers = draw.uniform(1, 2), draw.uniform(1.3, 2.5)
        lost = {f"a:{n}": 1 - attention_parameters(n) / 2.8e8 - KV_HEADS[n] / 16 for n in KV_HEADS}
        lost |= {f"f:{n}": 1 - ffn_parameters(n) / ffn_parameters("i100") for n in WIDTHS}
        score = {
            name: (attention_scale if name[0] == "a" else ffn_scale)
            * max(share, 0.0) ** powers[name[0] == "f"]
            * draw.lognormvariate(0, 0.25)
            for name, share in lost.items()
        }
        score |= {"a:kv8": 0.0, "f:i100": 0.0}
        found.append(
            tuple(
                Choice(
                    f"{a}+{f}",
                    score[f"a:{a}"] + score[f"f:{f}"] + 0.3 * math.sqrt(score[f"a:{a}"] * score[f"f:{f}"]),
                    {cost: float(costs[f"a:{a}"][cost] + costs[f"f:{f}"][cost]) for cost in costs["a:noop"]},
                )
                for a in KV_HEADS
                for f in WIDTHS
            )
        )
    whole = found[0][0].costs
    budgets = tuple(Budget(cost, max=share * layers * whole[cost]) for cost, share in zip(whole, shares, strict=True))
    return Problem(tuple(found), budgets=budgets, **options)


def import_seconds() -> float:
    code = "import time; t = time.process_time(); import lnlit_highs; print(time.process_time() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    tiny = "--tiny" in sys.argv
    depth, deep, seeds, number = (8, 8, 2, 3) if tiny else (80, 126, 7, 10)
    loaded = import_seconds()
    solver = registry.build("solver", "highs")
    times, gaps, worse = [], [], {name: [] for name in BASELINES}
    for seed in range(seeds):
        problem = make(depth, seed, (0.42, 0.5, 0.6))
        start = time.process_time()
        result = solver.solve(problem)
        times.append(time.process_time() - start + loaded)
        assert result.status == "optimal", result.status
        best = result.solutions[0]
        gaps.append(best.gap or 0.0)
        for name in BASELINES:
            for solution in registry.build("solver", name).solve(problem).solutions[:1]:
                worse[name].append(solution.score / best.score)
    several, several_gap = [], 0.0
    for seed in range(max(seeds // 2, 1)):
        problem = make(deep, seed, (0.45, 0.55, 0.62), num_solutions=number, max_overlap=0.75)
        start = time.process_time()
        result = solver.solve(problem)
        several.append(time.process_time() - start + loaded)
        assert len(result.solutions) == number, result.message
        several_gap = max(several_gap, *(solution.gap or 0.0 for solution in result.solutions))
    rows = [
        f"| {depth} layers x 54 choices x 3 budgets, to proof | {median(times):.2f} s | {max(times):.2f} s | "
        f"{max(gaps):.1e} |",
        f"| {deep} x 54 x 3, {number} solutions, overlap <= 0.75 | {median(several):.2f} s | {max(several):.2f} s | "
        f"{several_gap:.1e} |",
    ]
    ratios = ", ".join(f"{name} {median(found):.3f}x" for name, found in worse.items() if found)
    text = "\n".join(
        [
            f"\n## {date.today()}: architecture search to proof, CVXPY on HiGHS, 1 thread",
            f"CPU seconds, medians over {seeds} and {max(seeds // 2, 1)} seeds, {loaded:.2f} s of them CVXPY's import.",
            "",
            "| | median | slowest | largest proven gap |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Score of the baselines over the optimum's (median): {ratios}.",
        ]
    )
    print(text)
    if not tiny:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
