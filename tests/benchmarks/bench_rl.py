"""A GRPO step of SmolLM2-135M: lnlit against TRL's GRPOTrainer, split by phase.

    python tests/benchmarks/bench_rl.py [MODEL_FOLDER] [--steps 20]

Same prompts, 4 x 8 samples of exactly 64 new tokens, temperature 1, one update per rollout, four micro-batches, bf16
autocast over fp32 weights, AdamW, gradients clipped, no activation checkpointing, no reference, one cheap reward. TRL
generates with transformers, as its vLLM support asks for another release than there is; "trl-bf16" keeps its weights in
bf16 too, which is less work than ours. Each has a process, and they take turns step by step, so that a machine's moods
meet them all; the others sleep meanwhile. Medians over the steps after warm-up, appended to RESULTS.md. Needs 16 GiB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

PROMPTS, SAMPLES, NEW_TOKENS, MICRO_BATCHES, WARMUP = 4, 8, 64, 4, 2
PHASES = ("sync", "generate", "reward", "score", "train")
RESULTS = Path(__file__).with_name("RESULTS.md")


class Turns:
    """A subject's side of taking turns: its clock runs from one permission to the end of the step."""

    def __init__(self, parent: Connection) -> None:
        self.parent = parent

    def start(self) -> None:
        self.parent.recv()
        self.started = time.perf_counter()

    def end(self, parts: Mapping[str, float]) -> None:
        """A step is over; the next one may begin once this returns."""
        whole = time.perf_counter() - self.started
        self.parent.send({**parts, "train": whole - sum(parts.values()), "step": whole})
        self.start()


def rows() -> list[dict[str, Any]]:
    from lnlit.data.reasoning_gym import ReasoningGymSource

    return list(ReasoningGymSource("train", 400, ["basic_arithmetic"], "on").rows())


def lnlit(model: str, steps: int, turns: Turns) -> None:
    """GRPO and PromptData under a bare Trainer."""
    import lightning as L

    from lnlit.data.chat import ChatEncoder
    from lnlit.data.reasoning_gym import ReasoningGymSource
    from lnlit.modules.grpo import GRPO
    from lnlit.modules.optim import AdamW
    from lnlit.modules.prompt_data import PromptData, RolloutConfig, Weighted
    from lnlit.rewards.format import FormatReward
    from lnlit.rollout.native import NativeEngine

    ChatEncoder.end_ids = lambda self: []  # every completion has the full length

    class Clock(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            turns.start()

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if not trainer.fit_loop._should_accumulate():
                turns.end(trainer.datamodule.phases.seconds)  # type: ignore[attr-defined]

    data = PromptData(
        model,
        ReasoningGymSource("train", 400, ["basic_arithmetic"], "on"),
        [Weighted(FormatReward())],
        NativeEngine(PROMPTS * SAMPLES),
        RolloutConfig(PROMPTS, SAMPLES, NEW_TOKENS),
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
    ).fit(GRPO(model, AdamW(1e-6, schedule="constant", warmup_ratio=0.0)), data)


def trl(model: str, steps: int, turns: Turns, bf16_weights: bool = False) -> None:
    """TRL's trainer, with clocks around its own phases."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lnlit.thinking import obeys, toggle

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
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.end(parts)
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


def trl_bf16(model: str, steps: int, turns: Turns) -> None:
    trl(model, steps, turns, bf16_weights=True)


SUBJECTS: dict[str, Callable[[str, int, Turns], None]] = {"lnlit": lnlit, "trl": trl, "trl-bf16": trl_bf16}


def work(subject: str, model: str, steps: int, parent: Connection) -> None:
    """What a subject's process does, until nobody gives it another turn."""
    with suppress(EOFError):
        SUBJECTS[subject](model, steps, Turns(parent))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="runs/quickstart/model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    options = parser.parse_args()
    medians = {name: middle(steps[WARMUP:]) for name, steps in measure(options).items()}
    ours = medians["lnlit"]["step"]
    lines = [
        f"\n## GRPO step of SmolLM2-135M, {date.today()}\n",
        f"{PROMPTS} x {SAMPLES} samples of {NEW_TOKENS} tokens, {options.steps} steps in turn, medians in seconds; "
        f"{platform.processor() or platform.machine()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads.\n",
        "| | " + " | ".join((*PHASES, "step", "ratio")) + " |",
        "|---|" + "---|" * (len(PHASES) + 2),
    ]
    for subject, parts in medians.items():
        numbers = [f"{parts[phase]:.2f}" if phase in parts else "" for phase in (*PHASES, "step")]
        lines.append(f"| {subject} | " + " | ".join([*numbers, f"{parts['step'] / ours:.2f}"]) + " |")
    print("\n".join(lines))
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Subject -> seconds of each step by phase."""
    spawn = multiprocessing.get_context("spawn")
    steps = options.steps + WARMUP
    pipes: dict[str, Connection] = {}
    for subject in options.subjects:
        pipes[subject], theirs = spawn.Pipe()
        spawn.Process(target=work, args=(subject, options.model, steps + 1, theirs)).start()
        theirs.close()
    found: dict[str, list[dict[str, float]]] = {subject: [] for subject in pipes}
    for number in range(steps):
        for subject, pipe in pipes.items():
            pipe.send("go")
            found[subject].append(pipe.recv())
            print(number, subject, f"{found[subject][-1]['step']:.2f} s", flush=True)
    for pipe in pipes.values():
        pipe.close()
    return found


def middle(steps: list[dict[str, float]]) -> dict[str, float]:
    return {phase: median(step.get(phase, 0.0) for step in steps) for phase in {name for s in steps for name in s}}


if __name__ == "__main__":
    main()
