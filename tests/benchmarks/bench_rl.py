"""A GRPO step of SmolLM2-135M: lnlit against TRL's GRPOTrainer, split by phase.

    python tests/benchmarks/bench_rl.py [MODEL_FOLDER] [--steps 20]

Same prompts, 4 x 8 samples of exactly 64 new tokens, temperature 1, one update per rollout, four micro-batches, bf16
autocast over fp32 weights, AdamW, gradients clipped, no activation checkpointing, no reference, one cheap reward. TRL
generates with transformers, as its vLLM support asks for another release than there is; "trl-bf16" keeps its weights in
bf16 too, which is less work than ours. One process after the other, the same number of threads; medians over the steps
after warm-up, appended to RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

PROMPTS, SAMPLES, NEW_TOKENS, MICRO_BATCHES, WARMUP = 4, 8, 64, 4, 2
PHASES = ("sync", "generate", "reward", "score", "train")
RESULTS = Path(__file__).with_name("RESULTS.md")


def rows() -> list[dict[str, Any]]:
    from lnlit.data.reasoning_gym import ReasoningGymSource

    return list(ReasoningGymSource("train", 400, ["basic_arithmetic"], "on").rows())


def lnlit(model: str, steps: int, compiled: bool = False) -> list[dict[str, float]]:
    """GRPO and Experience under a bare Trainer."""
    import lightning as L

    from lnlit.data.reasoning_gym import ReasoningGymSource
    from lnlit.modules.experience import Experience, Weighted
    from lnlit.modules.grpo import GRPO
    from lnlit.modules.lit_model import Runtime
    from lnlit.modules.optim import AdamW
    from lnlit.modules.rollouts import Rollouts
    from lnlit.rewards.format import FormatReward
    from lnlit.rollout.native import NativeEngine

    Rollouts._ends = ()  # type: ignore[assignment]  # every completion has the full length
    found: list[dict[str, float]] = []

    class Clock(L.Callback):
        started = 0.0

        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.started = time.perf_counter()

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.fit_loop._should_accumulate():
                return
            now = time.perf_counter()
            parts = dict(trainer.datamodule.phases.seconds)  # type: ignore[attr-defined]
            whole, self.started = now - self.started, now
            found.append({**parts, "train": whole - sum(parts.values()), "step": whole})

    data = Experience(
        model,
        ReasoningGymSource("train", 400, ["basic_arithmetic"], "on"),
        [Weighted(FormatReward())],
        NativeEngine(PROMPTS * SAMPLES),
        prompts_per_rollout=PROMPTS,
        samples_per_prompt=SAMPLES,
        max_new_tokens=NEW_TOKENS,
    )
    L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        accumulate_grad_batches=MICRO_BATCHES,
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(GRPO(model, AdamW(1e-6, schedule="constant", warmup_ratio=0.0), runtime=Runtime(compile=compiled)), data)
    return found


def trl(model: str, steps: int, bf16_weights: bool = False) -> list[dict[str, float]]:
    """TRL's trainer, with clocks around its own phases."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lnlit.thinking import obeys, toggle

    found: list[dict[str, float]] = []
    parts: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                parts[name] = parts.get(name, 0.0) + time.perf_counter() - start

        return run

    class Clock(TrainerCallback):
        started = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            whole, self.started = now - self.started, now
            found.append({**parts, "train": whole - sum(parts.values()), "step": whole})
            parts.clear()

    def reward(completions: list[Any], **kwargs: Any) -> list[float | None]:
        return [float(obeys(completion[0]["content"], "on")) for completion in completions]

    prompts = [{"prompt": [{"role": "system", "content": toggle("on")}, row["messages"][0]]} for row in rows()]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if bf16_weights else torch.float32),
            [reward],
            GRPOConfig(scratch, max_steps=steps, **_TRL_SETTINGS),
            train_dataset=Dataset.from_list(prompts),
            callbacks=[Clock()],
        )
        trainer._generate = timed("generate", trainer._generate)
        trainer._calculate_rewards = timed("reward", trainer._calculate_rewards)
        trainer.train()
    return found


_TRL_SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": True,
    "per_device_train_batch_size": PROMPTS * SAMPLES // MICRO_BATCHES,
    "gradient_accumulation_steps": MICRO_BATCHES,
    "num_generations": SAMPLES,
    "max_completion_length": NEW_TOKENS,
    "generation_kwargs": {"min_new_tokens": NEW_TOKENS},
    "temperature": 1.0,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "max_grad_norm": 1.0,
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}

SUBJECTS: dict[str, Callable[[str, int], list[dict[str, float]]]] = {
    "lnlit": lnlit,
    "lnlit-compiled": lambda model, steps: lnlit(model, steps, compiled=True),
    "trl": trl,
    "trl-bf16": lambda model, steps: trl(model, steps, bf16_weights=True),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="runs/quickstart/model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--subject", choices=SUBJECTS)
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.subject:
        found = SUBJECTS[options.subject](options.model, options.steps)
        Path(options.out).write_text(json.dumps(found), encoding="utf-8")
        return
    medians = {subject: _measured(subject, options) for subject in SUBJECTS}
    ours = medians["lnlit"]
    lines = [
        f"\n## GRPO step of SmolLM2-135M, {date.today()}\n",
        f"{PROMPTS} x {SAMPLES} samples of {NEW_TOKENS} tokens, {options.steps} steps, medians in seconds; "
        f"{platform.processor() or platform.machine()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads.\n",
        "| | " + " | ".join((*PHASES, "step", "ratio")) + " |",
        "|---|" + "---|" * (len(PHASES) + 2),
    ]
    for subject, parts in medians.items():
        numbers = [f"{parts[phase]:.2f}" if phase in parts else "" for phase in (*PHASES, "step")]
        lines.append(f"| {subject} | " + " | ".join([*numbers, f"{parts['step'] / ours['step']:.2f}"]) + " |")
    print("\n".join(lines))
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _measured(subject: str, options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "steps.json"
        command = [sys.executable, __file__, options.model, "--subject", subject, "--out", str(out)]
        subprocess.run([*command, "--steps", str(options.steps + WARMUP)], check=True)
        steps = json.loads(out.read_text(encoding="utf-8"))[WARMUP:]
    return {phase: median(step.get(phase, 0.0) for step in steps) for phase in {name for s in steps for name in s}}


if __name__ == "__main__":
    main()
