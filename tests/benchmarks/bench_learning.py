"""Does a policy learn what it is paid for, and nothing where pay is shuffled?

    python tests/benchmarks/bench_learning.py warm                  # the supervised start of the sums
    python tests/benchmarks/bench_learning.py annotate              # pass rates, for `curriculum` and `uniform`
    python tests/benchmarks/bench_learning.py run grpo --seed 0     # goes on where it was stopped
    python tests/benchmarks/bench_learning.py table                 # what all finished runs say together

Every run starts from SmolLM2-135M or its warm start and is judged on questions that no training question shares its
text with, before the first step and after the last, with the same seeds. The control `shuffled` is `grpo` with the
rewards of each rollout dealt out at random. "best constant" and "echo" are what two policies without arithmetic would
get: always the commonest answer, and the question's last number. `rpo` needs what bench_reward_model.py leaves.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lnlit.callbacks.checkpoints import Checkpoint, checkpoint_folder, list_checkpoints
from lnlit.callbacks.export import ExportModel
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.data.datamodule import ChatData
from lnlit.data.difficulty import DifficultySource
from lnlit.data.instructions import InstructionSource
from lnlit.data.reasoning_gym import ReasoningGymSource
from lnlit.data.sources import JsonlSource
from lnlit.data.tokenizer import pad_id
from lnlit.files import read_json, write_json
from lnlit.interfaces import Algorithm, Loss, Needs, PolicyBatch, RewardTable
from lnlit.models.build import build_decoder
from lnlit.modules.grpo import GRPO
from lnlit.modules.model_reward import ModelReward
from lnlit.modules.optim import AdamW
from lnlit.modules.policy import Policy
from lnlit.modules.prompt_data import HeldOut, PromptData, RolloutConfig, Weighted
from lnlit.modules.reference import OldPolicy
from lnlit.modules.rloo import RLOO
from lnlit.modules.rpo import RPO
from lnlit.modules.sft import SFT
from lnlit.objectives.kl import KL
from lnlit.rewards.format import FormatReward
from lnlit.rewards.instructions import InstructionsReward
from lnlit.rewards.math_answer import MathAnswerReward
from lnlit.rl.batch import pack
from lnlit.rollout.log_probs import token_log_probs
from lnlit.rollout.native import NativeEngine
from lnlit.sampling.curriculum import GaussianCurriculum
from lnlit.sampling.order import PromptOrder, Uniform
from lnlit.sampling.sample import Sample
from lnlit.stages.annotate import Sampling, annotate

RUNS = Path("runs/learning")
WARM = RUNS / "warm"
ANNOTATED = RUNS / "annotated.jsonl"
SMOLLM2 = "runs/smollm2"
#: What the curriculum chooses from: from what the warm start nearly always solves to what it never does.
MIXED: dict[str, dict[str, Any]] = {
    "basic_arithmetic": {"min_terms": 2, "max_terms": 4},
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "products": {"min_digits": 1, "max_digits": 2},
}


@dataclass(frozen=True)
class Study:
    """A policy and its data, given the options; `parts` are the rewards to report."""

    policy: Callable[[argparse.Namespace], Policy]
    data: Callable[[argparse.Namespace], PromptData]
    parts: tuple[str, ...] = ("answer", "format")
    steps: int = 60


def grpo(options: argparse.Namespace) -> GRPO:
    return GRPO(str(WARM), AdamW(options.rate or 2e-5, schedule="constant", warmup_ratio=0.0))


def sums(options: argparse.Namespace, kind: type[PromptData] | None = None, **settings: Any) -> PromptData:
    """Thinking on and off in equal parts; 8 prompts x 8 samples a step."""
    tasks = settings.pop("tasks", {"basic_arithmetic": {}})
    given = {
        "prompts": ReasoningGymSource("train", 1600, tasks, "both", seed=options.seed),
        "held_out": HeldOut(ReasoningGymSource("heldout", 240, tasks, "both", seed=7), 2),
    }
    return (kind or PromptData)(
        tokenizer=str(WARM),
        rewards=[Weighted(MathAnswerReward(), 1.0, "answer"), Weighted(FormatReward(), 1.0, "format")],
        engine=NativeEngine(64),
        rollout=RolloutConfig(8, 8, max_new_tokens=96),
        seed=options.seed,
        **(given | settings),
    )


def shuffled(options: argparse.Namespace) -> Policy:
    """The control of `grpo`: the same, but each sample gets another one's rewards."""
    policy = grpo(options)
    policy.algorithm = ShuffledRewards(policy.algorithm, options.seed)
    return policy


def annotated(options: argparse.Namespace, order: PromptOrder) -> PromptData:
    """The same prompts, in another order."""
    held_out = HeldOut(ReasoningGymSource("heldout", 240, MIXED, "on", seed=7), 2)
    prompts = DifficultySource(JsonlSource(str(ANNOTATED)), pass_rate_below=0.75)
    return sums(options, prompts=prompts, held_out=held_out, prompt_order=order)


def instructions(options: argparse.Namespace) -> PromptData:
    """1 to 10 instructions a prompt, and the share of them that is obeyed."""
    return PromptData(
        tokenizer=SMOLLM2,
        prompts=InstructionSource("train", 2000, seed=options.seed),
        rewards=[Weighted(InstructionsReward(), 1.0, "share"), Weighted(InstructionsReward("all"), 0.0, "all")],
        engine=NativeEngine(64),
        rollout=RolloutConfig(8, 8, max_new_tokens=96),
        held_out=HeldOut(InstructionSource("heldout", 200, seed=7), 2),
        seed=options.seed,
    )


def preferences(options: argparse.Namespace) -> PromptData:
    """Questions of people, and a reward model that learned from other pairs than these."""
    questions = Path("runs/reward_model")
    held_out = RUNS / "questions.jsonl"
    with (questions / "heldout.jsonl").open(encoding="utf-8") as file:
        held_out.write_text("".join(islice(file, 120)), encoding="utf-8")
    return PromptData(
        tokenizer=SMOLLM2,
        prompts=JsonlSource(str(questions / "train.jsonl")),
        rewards=[Weighted(ModelReward(str(questions / "model")), 1.0, "reward_model")],
        engine=NativeEngine(64),
        rollout=RolloutConfig(16, 4, max_new_tokens=64, updates_per_rollout=2),
        held_out=HeldOut(JsonlSource(str(held_out)), 1),
        seed=options.seed,
    )


STUDIES = {
    "grpo": Study(grpo, sums),
    "shuffled": Study(shuffled, sums),
    "harder": Study(
        grpo, lambda options: sums(options, tasks={"basic_arithmetic": {"min_terms": 4, "max_terms": 4}}), steps=80
    ),
    "curriculum": Study(grpo, lambda options: annotated(options, GaussianCurriculum()), ("answer",)),
    "uniform": Study(grpo, lambda options: annotated(options, Uniform()), ("answer",)),
    "rloo": Study(
        lambda options: RLOO(SMOLLM2, AdamW(options.rate or 1e-5, schedule="constant", warmup_ratio=0.0), kl=KL(0.0)),
        instructions,
        ("share", "all"),
    ),
    "rpo": Study(
        lambda options: RPO(
            SMOLLM2,
            AdamW(options.rate or 1e-5, schedule="constant", warmup_ratio=0.0),
            beta=1e-5,
            eta=3.0,
            reference=OldPolicy(),
        ),
        preferences,
        ("reward_model",),
    ),
}


class ShuffledRewards(Algorithm):
    """The control: each sample gets the reward of another one, drawn by what the rewards are."""

    def __init__(self, algorithm: Algorithm, seed: int) -> None:
        self.algorithm, self.seed = algorithm, seed

    @property
    def needs(self) -> Needs:
        return self.algorithm.needs

    def advantages(self, table: RewardTable) -> torch.Tensor:
        random = torch.Generator().manual_seed(self.seed + int(table.lengths_PG.sum()))
        order = torch.randperm(table.lengths_PG.numel(), generator=random)
        shuffled_PGR = table.rewards_PGR.flatten(0, 1)[order].view_as(table.rewards_PGR)
        return self.algorithm.advantages(replace(table, rewards_PGR=shuffled_PGR))

    def loss(self, log_probs_N: torch.Tensor, batch: PolicyBatch) -> Loss:
        return self.algorithm.loss(log_probs_N, batch)


class Judged(L.Callback):
    """Keeps what each validation found, sample by sample: the reward parts, by thinking mode and question."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.trainer = trainer
        listeners = trainer.datamodule.listeners  # type: ignore[attr-defined]
        if self.note not in listeners:
            listeners.append(self.note)

    def note(self, stage: str, samples: Sequence[Sample]) -> None:
        step = self.trainer.global_step
        found = [
            {
                "question": sample.prompt.messages[-1]["content"],
                "gold": sample.prompt.row.get("answer"),
                "thinking": sample.prompt.row.get("thinking"),
                "tokens": len(sample.rollout.token_ids),
                "parts": {name: result.value for name, result in sample.rewards.items()},
            }
            for sample in samples
        ]
        if stage == "val":
            self.last = list(samples)
            write_json(self.folder / f"val-{step:04}.json", found)
        else:
            with (self.folder / "train.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **means(found)}) + "\n")


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    parts = {name: fmean(row["parts"][name] or 0.0 for row in rows) for name in rows[0]["parts"]}
    return parts | {"tokens": fmean(row["tokens"] for row in rows)}


def run(options: argparse.Namespace) -> None:
    folder = RUNS / f"{options.name}-{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    L.seed_everything(options.seed)
    study = STUDIES[options.name]
    policy, data, judged = study.policy(options), study.data(options), Judged(folder)
    steps = options.steps or study.steps
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=steps,
        accumulate_grad_batches=4,
        gradient_clip_val=1.0,
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, "", "logs"),
        callbacks=[Checkpoint(every_n_steps=10), judged],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        val_check_interval=steps * 4,
        num_sanity_val_steps=0,
        inference_mode=False,
    )
    found = list_checkpoints(checkpoint_folder(folder))
    if not found:
        trainer.validate(policy, data, verbose=False)
    trainer.fit(policy, data, ckpt_path=found[-1] if found else None, weights_only=False)
    nats = divergence(policy.model, judged.last, data)
    write_json(folder / "divergence.json", {"nats": nats})


@torch.no_grad()
def divergence(start: str, samples: Sequence[Sample], data: PromptData) -> list[float]:
    """log(policy / start) of each held-out completion: their mean is KL(policy || start), in nats a completion."""
    decoder = build_decoder(read_spec(start), "cpu", torch.bfloat16).eval()
    load_weights(decoder, start)
    found = []
    for at in range(0, len(samples), 16):
        part = samples[at : at + 16]
        packed = pack(part, [True] * len(part), pad_id(data.encoder.tokenizer))
        before = packed.split(token_log_probs(decoder, packed.tokens).log_probs_N.float())
        found += [
            (sample.engine_log_probs - log_probs).sum().item() for sample, log_probs in zip(part, before, strict=True)
        ]
    return found


def warm(options: argparse.Namespace) -> None:
    """The start of the sums: 30 steps of supervised fine-tuning, after which a third of them is right."""
    data = ChatData(
        SMOLLM2,
        ReasoningGymSource("train", 3000, {"basic_arithmetic": {"min_terms": 2, "max_terms": 4}}),
        sequence_length=512,
        micro_batch_size=4,
    )
    L.seed_everything(0)
    L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=30,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[ExportModel(str(WARM), overwrite=True)],
    ).fit(SFT(SMOLLM2, AdamW(3e-4, schedule="constant", warmup_ratio=0.2)), data)


def annotate_prompts(options: argparse.Namespace) -> None:
    """How often the warm start solves each of the curriculum's prompts."""
    prompts = ReasoningGymSource("train", 600, MIXED, "on", seed=5)
    annotate(str(WARM), prompts, MathAnswerReward(), str(ANNOTATED), Sampling(8, 96))


def table(options: argparse.Namespace) -> None:
    """Markdown, a line for each reward of each finished run: its means before and after, their difference with its 95 %
    interval over questions, and what the two rules without arithmetic get."""
    print("| run | step | reward | thinking | before | after | gain | KL, nats a completion | constant | echo |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for folder in sorted(RUNS.glob("*-[0-9]")):
        found = sorted(folder.glob("val-*.json"))
        if len(found) < 2:
            continue
        first, last = (json.loads(file.read_text()) for file in (found[0], found[-1]))
        divergence = folder / "divergence.json"
        moved = f"{fmean(read_json(divergence)['nats']):.2f}" if divergence.is_file() else ""
        for name in STUDIES[folder.name.rpartition("-")[0]].parts:
            rules = baselines(first) if name == "answer" else ("", "")
            for mode in sorted({row["thinking"] for row in first}, key=str):
                before, after = (by_question(rows, name, mode) for rows in (first, last))
                gain = interval([after[question] - before[question] for question in before])
                means = [f"{fmean(rows.values()):.3f}" for rows in (before, after)]
                cells = [folder.name, str(int(found[-1].stem[4:])), name, mode or "", *means, gain, moved, *rules]
                print(f"| {' | '.join(cells)} |")


def baselines(rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """What always the commonest answer gets, and the question's last number."""
    golds = {row["question"]: row["gold"] for row in rows}
    echoed = fmean(re.findall(r"-?\d+", question)[-1:] == [gold] for question, gold in golds.items())
    return f"{Counter(golds.values()).most_common(1)[0][1] / len(golds):.3f}", f"{echoed:.3f}"


def by_question(rows: Sequence[dict[str, Any]], name: str, mode: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["thinking"] == mode:
            found.setdefault(row["question"], []).append(row["parts"][name] or 0.0)
    return {question: fmean(values) for question, values in found.items()}


def interval(values: Sequence[float], draws: int = 2000) -> str:
    """Mean and its 95 % interval, by drawing the questions anew."""
    chance = random.Random(0)
    drawn = sorted(fmean(chance.choices(values, k=len(values))) for _ in range(draws))
    return f"{fmean(values):+.3f} ({drawn[int(0.025 * draws)]:+.3f} to {drawn[int(0.975 * draws)]:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, command in (("warm", warm), ("annotate", annotate_prompts), ("run", run), ("table", table)):
        one = commands.add_parser(name, help=str(command.__doc__).replace("%", "%%"))
        one.set_defaults(command=command)
        if command is run:
            one.add_argument("name", choices=STUDIES)
            one.add_argument("--seed", type=int, default=0)
            one.add_argument("--steps", type=int)
            one.add_argument("--rate", type=float)
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
