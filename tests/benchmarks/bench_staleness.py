"""GRPO of SmolLM2-135M with `max_staleness: 1`, trainer and engine on one core each, against 0 with both on one core.

    python tests/benchmarks/bench_staleness.py MODEL_FOLDER [--steps 8] [--rounds 2] [--cores 0 1]

Both draw the same number of equally long completions (no end token counts) and learn from them alike. Runs take turns,
each in a process of its own that is pinned to its cores. The first two steps, in which processes start, are left out.
Prints steps per hour and the samples' mean staleness, and appends them to RESULTS.md. A third run has 0 and both cores,
which is what the same machine does without.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import fmean, median

RESULTS = Path(__file__).with_name("RESULTS.md")
SIZES = {"prompts_per_rollout": 4, "samples_per_prompt": 4, "max_new_tokens": 48}


def run(model: str, staleness: int, steps: int) -> dict[str, float]:
    """Trains in this process, on the cores that it has."""
    import lightning as L
    import torch

    from lnlit.data.sources import JsonlSource
    from lnlit.interfaces import BatchReward, RewardResult
    from lnlit.modules.grpo import GRPO
    from lnlit.modules.optim import AdamW
    from lnlit.modules.prompt_data import LogprobCheck, PromptData, RolloutConfig, Weighted
    from lnlit.rollout.native import NativeEngine

    class Letters(BatchReward):
        def score_batch(self, requests):
            return [RewardResult(float(sum(map(str.islower, request.completion)))) for request in requests]

    class Ticks(L.Callback):
        seconds: list[float] = []

        def on_train_batch_end(self, *args) -> None:
            self.seconds.append(time.perf_counter())

    torch.set_num_threads(1 if staleness else len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "prompts.jsonl"
        rows = [{"messages": [{"role": "user", "content": f"Tell me about the number {n}."}]} for n in range(200)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        rollout = RolloutConfig(**SIZES, max_staleness=staleness)
        engine, check = NativeEngine(64, "bfloat16", "cpu"), LogprobCheck()
        data = PromptData(model, JsonlSource(str(file)), [Weighted(Letters())], engine, rollout, logprob_check=check)
        stale: list[int] = []
        data.listeners.append(
            lambda _, samples: stale.extend(data.policy.version - sample.rollout.weight_version for sample in samples)
        )
        data.encoder.end_ids = lambda: []  # type: ignore[method-assign]  equal work
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(
            accelerator="cpu", precision="bf16-mixed", max_steps=steps, callbacks=[Ticks()], default_root_dir=scratch,
            enable_model_summary=False, **quiet,
        )  # fmt: skip
        trainer.fit(GRPO(model, AdamW(1e-6, schedule="constant", warmup_ratio=0.0)), data)
    ticks = Ticks.seconds[1:]
    return {"steps_per_hour": 3600 * (len(ticks) - 1) / (ticks[-1] - ticks[0]), "staleness": fmean(stale)}


def measured(model: str, staleness: int, steps: int, cores: list[int]) -> dict[str, float]:
    command = [sys.executable, __file__, model, "--steps", str(steps), "--run", str(staleness)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1])
    parser.add_argument("--run", type=int, choices=[0, 1])
    options = parser.parse_args()
    if options.run is not None:
        print(json.dumps(run(options.model, options.run, options.steps)))
        return
    kinds = {
        "0, both on one core": (0, options.cores[:1]),
        "1, one core each": (1, options.cores),
        "0, both on both cores": (0, options.cores),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(options.rounds):
        for name, (staleness, cores) in kinds.items():
            found[name].append(measured(options.model, staleness, options.steps, cores))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    base, size = kinds, " ".join(f"{name} {value}," for name, value in SIZES.items()).rstrip(",")
    first = next(iter(base))
    lines = [
        f"\n## {date.today()}: GRPO one step off policy, SmolLM2-135M, {size}",
        f"Steps {2} to {options.steps}, {options.rounds} rounds in turns, each process pinned to its cores. Ratios of "
        "one round, their median.\n",
        "| max_staleness | steps/h | against the first row | mean staleness in steps |",
        "|---|---|---|---|",
    ]
    for name, each in found.items():
        pairs = zip(each, found[first], strict=True)
        ratio = median(one["steps_per_hour"] / other["steps_per_hour"] for one, other in pairs)
        speed = median(one["steps_per_hour"] for one in each)
        lines.append(f"| {name} | {speed:.0f} | {ratio:.2f}x | {each[0]['staleness']:.2f} |")
    print("\n".join(lines))
    with RESULTS.open("a") as stream:
        stream.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
