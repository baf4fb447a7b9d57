"""yaml/mini in a small form: a tiny model, a few rows and steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from lnlit.specs import BlockSpec
from lnlit.testing.tiny import attention, swiglu, tiny_folder, tiny_spec

RECIPES = Path(__file__).parents[1] / "yaml" / "mini"
#: What makes the search and healing small. Times of a model this small are noise, so the budgets are parameters.
SEARCH = {
    "length: 512": "length: 32",
    "rows: 16": "rows: 2",
    "\nout: runs/mini/library_untrained": "\nout: runs/mini/library_untrained\ncandidates: {width_multiple: 8}",
    "rows: 8\n": "rows: 2\n",
    "skip: 400": "skip: 4",
    "rows: 4\n": "rows: 2\n",
    "skip: 410": "skip: 6",
    "max_steps: 48": "max_steps: 2\n  accelerator: cpu",
    "max_steps: 60": "max_steps: 2\n  accelerator: cpu",
    "max_steps: 120": "max_steps: 2\n  accelerator: cpu",
    "val_check_interval: 60": "val_check_interval: 1",
    "compile: auto": "compile: false",
    "rounds: 3": "rounds: 1\nsamples: 1",
    "batch_size: 8, prompt_tokens: 256, new_tokens: 32": "batch_size: 1, prompt_tokens: 8, new_tokens: 3",
    "cost: throughput, min: 1.3": "cost: parameters, max: 0.9",
    "frontier: {cost: latency_s, values: [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]": "frontier: {cost: parameters, values: [0.95]",
}
#: What makes the warm start and reinforcement learning small, by stage.
LEARNING = {
    "5_sft": {"size: 3000": "size: 12", "max_steps: 30": "max_steps: 1"},
    "5b_annotate": {
        "size: 240": "size: 6",
        "samples_per_prompt: 8": "samples_per_prompt: 2",
        "max_new_tokens: 96": "max_new_tokens: 6",
    },
    "5c_curriculum": {"rollouts: 20": "rollouts: 2"},
    "6_grpo": {"max_steps: 40": "max_steps: 4", "val_check_interval: 40": "val_check_interval: 4"},
    "6b_generate": {
        "size: 80": "size: 4",
        "samples_per_prompt: 4": "samples_per_prompt: 2",
        "max_new_tokens: 96": "max_new_tokens: 6",
    },
    "7_rloo": {
        "size: 1000": "size: 30",
        "max_steps: 20": "max_steps: 1",
        "val_check_interval: 40": "val_check_interval: 4",
    },
    "7b_reward_model": {"max_steps: 30": "max_steps: 1", "val_check_interval: 60": "val_check_interval: 1"},
    "8_rpo": {
        "size: 1000": "size: 30",
        "max_steps: 20": "max_steps: 1",
        "val_check_interval: 40": "val_check_interval: 4",
    },
}


def searching(recipe: Path) -> str:
    """The text of a recipe of the search or of healing, made small."""
    text = recipe.read_text()
    for old, new in SEARCH.items():
        text = text.replace(old, new)
    return text


def learning(recipe: Path) -> str:
    """The text of a recipe of the warm start or of what follows it, made small."""
    text = recipe.read_text()
    for old, new in {**LEARNING.get(recipe.stem, {}), "compile: auto": "compile: false"}.items():
        assert old in text or "compile" in old, old
        text = text.replace(old, new)
    return text


def write_parent(folder: Path) -> None:
    """A random model of three layers that reads bytes, as runs/smollm2."""
    layers = (BlockSpec(attention(2), swiglu(64)),) * 3
    tiny_folder(folder / "runs" / "smollm2", tiny_spec().replace(context_length=1024, layers=layers))


def write_texts(folder: Path) -> None:
    """data/pydocs."""
    (folder / "data" / "pydocs").mkdir(parents=True)
    rows = [json.dumps({"text": f"page {index}: {index * 7919} of {index * 104729}. " * 9}) for index in range(30)]
    for name in ("train", "valid"):
        with gzip.open(folder / "data" / "pydocs" / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(rows) + "\n")


def write_preferences(folder: Path) -> None:
    """data/hh_rlhf."""
    (folder / "data" / "hh_rlhf").mkdir(parents=True)
    with gzip.open(folder / "data/hh_rlhf/helpful-base.jsonl.gz", "wt") as file:
        for n in range(60):
            start = f"\n\nHuman: {n} pies?\n\nAssistant: "
            file.write(json.dumps({"chosen": f"{start}Yes, {n}.", "rejected": f"{start}No."}) + "\n")
