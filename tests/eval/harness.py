"""EleutherAI's harness as an oracle: what its tasks ask of rows, and how they judge what a model says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest


def harness_task(folder: Path, config: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], **changes: Any) -> Any:
    """A task of the harness on rows of our own, with its requests built.

    Args:
        folder: Where to write the rows and the task's configuration.
        config: The task's YAML file, below the harness' folder of tasks.
        splits: The rows of each split; splits that are not given do not exist.
        changes: Further keys of the configuration.
    """
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval, the oracle")
    original = Path(lm_eval.__file__).parent / "tasks" / config
    files = {}
    for split, rows in splits.items():
        files[split] = str(folder / f"{split}.json")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "include": str(original),
        "task": "of_our_own",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        **{f"{name}_split": name if name in splits else None for name in ("training", "validation", "test")},
        "fewshot_split": "dev" if "dev" in splits else None,
        **changes,
    }
    file = folder / "task.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML
    task = _tasks().load([str(file)])["tasks"]["of_our_own"]
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return task


@cache
def _tasks() -> Any:
    """The harness' list of all its tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager()
