"""Does a small reward model learn what people prefer? SmolLM2-135M on HH (helpful) and Orca pairs; held-out accuracy.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_reward_model.py [--steps 40] [--out runs/reward_model]

Pairs whose dialogues begin with a held-out question are never trained on. Beside the model stands a rule that needs no
training: the longer completion is the better one. Prints a table and appends it to RESULTS.md; killed, it goes on where
it was when started again with the same arguments. About 15 minutes on one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from lnlit.data.chat import ChatEncoder
from lnlit.data.preference_rows import PreferenceRows
from lnlit.data.sources import JsonlSource
from lnlit.data.split import is_heldout
from lnlit.data.tokenizer import load_tokenizer
from lnlit.eval.intervals import share
from lnlit.interfaces import RewardRequest
from lnlit.modules.model_reward import ModelReward

RESULTS = Path(__file__).with_name("RESULTS.md")
SOURCES = {
    "helpful-base": "hh_rlhf/helpful-base_test.jsonl.gz",
    "helpful-online": "hh_rlhf/helpful-online_test.jsonl.gz",
    "helpful-rejection-sampled": "hh_rlhf/helpful-rejection-sampled_test.jsonl.gz",
    "orca and others": "preference/dpo_en_demo.json",
}
LENGTH, HELD_OUT_PERCENT, CHUNK = 192, 20, 32


def pairs(data: Path, encoder: ChatEncoder) -> Iterator[dict[str, Any]]:
    """Pairs of which both completions fit into `LENGTH` tokens, each with its source's name."""
    for name, file in SOURCES.items():
        rows = [row for row in PreferenceRows(JsonlSource(str(data / file))).rows() if len(row["completions"]) == 2]
        chats = [[*row["messages"], _answer(text)] for row in rows for text in row["completions"]]
        sizes = [len(document) for document in encoder.encode_many({"messages": chat} for chat in chats)]
        for row, *both in zip(rows, sizes[::2], sizes[1::2], strict=True):
            if max(both) <= LENGTH:
                yield {**row, "source": name}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write_data(data: Path, model: str, out: Path) -> None:
    if (out / "heldout.jsonl").is_file():
        return
    sides: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for pair in pairs(data, ChatEncoder(load_tokenizer(model))):
        question = next(message["content"] for message in pair["messages"] if message["role"] == "user")
        sides[is_heldout(question, HELD_OUT_PERCENT)].append(pair)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", sides[False]), ("heldout", sides[True])):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(model: str, out: Path, steps: int) -> None:
    """16 rows of 2 x `LENGTH` tokens a step, about 25 pairs."""
    if (out / "model" / "config.json").is_file():
        return
    recipe = {
        "seed_everything": 0,
        "model": {
            "class_path": "RewardModel",
            "init_args": {
                "model": model,
                "center_rewards_coefficient": 0.01,
                "optimizer": {"learning_rate": 2e-5, "warmup_ratio": 0.1},
                "runtime": {"compile": "auto"},
            },
        },
        "data": {
            "class_path": "PreferenceData",
            "init_args": {
                "tokenizer": model,
                "train": {"class_path": "jsonl", "init_args": {"paths": str(out / "train.jsonl")}},
                "sequence_length": LENGTH,
                "micro_batch_size": 4,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(out / "run"),
            "max_steps": steps,
            "accumulate_grad_batches": 4,
            "precision": "bf16-mixed",
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "logger": False,
            "callbacks": [
                {"class_path": "Checkpoint", "init_args": {"every_n_steps": 5}},
                {"class_path": "ExportModel", "init_args": {"out": str(out / "model")}},
            ],
        },
    }
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "lnlit.cli.main", "fit", "--config", str(out / "recipe.yaml")]
    subprocess.run([*command, "--ckpt_path", "last"], check=True)


def score(out: Path, limit: int | None) -> list[dict[str, Any]]:
    """The held-out pairs with the scores of both completions, remembered in a file."""
    rows = [json.loads(line) for line in (out / "heldout.jsonl").open(encoding="utf-8")][:limit]
    done = out / "scores.jsonl"
    found = [json.loads(line) for line in done.open()] if done.is_file() else []
    reward = ModelReward(str(out / "model"), dtype="bfloat16", device="cpu")
    for start in range(len(found), len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        results = reward.score_batch(
            [RewardRequest(row["messages"], text, False) for row in chunk for text in row["completions"]]
        )
        values = [result.value for result in results]
        new = [list(pair) for pair in zip(values[::2], values[1::2], strict=True)]
        with done.open("a") as file:
            file.write("".join(json.dumps(pair) + "\n" for pair in new))
        found += new
    return [{**row, "scores": pair} for row, pair in zip(rows, found, strict=False)]


def table(judged: list[dict[str, Any]]) -> list[str]:
    lines = ["| held-out pairs | number | reward model | longer is better |", "|---|---|---|---|"]
    for name in (*SOURCES, "all"):
        rows = [row for row in judged if name in ("all", row["source"])]
        right = sum(row["scores"][0] > row["scores"][1] for row in rows)
        longer = sum(len(row["completions"][0]) > len(row["completions"][1]) for row in rows)
        lines.append(f"| {name} | {len(rows)} | {share(right, len(rows))} | {share(longer, len(rows))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/smollm2")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/reward_model"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, help="score only so many held-out pairs, and leave RESULTS.md alone")
    options = parser.parse_args()
    write_data(options.data, options.model, options.out)
    train(options.model, options.out, options.steps)
    judged = score(options.out, options.pairs)
    pairs = sum(1 for _ in (options.out / "train.jsonl").open())
    heading = f"\n## {date.today()} a reward model from SmolLM2-135M\n"
    told = (
        f"{options.steps} steps of 16 x {2 * LENGTH} tokens out of {pairs} training pairs, "
        f"{torch.get_num_threads()} thread(s). Shares with their 95 % Wilson intervals.\n"
    )
    lines = [heading, told, *table(judged)]
    print(*lines, sep="\n")
    if options.pairs is None:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
