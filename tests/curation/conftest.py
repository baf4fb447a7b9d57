"""What tests of curation share: rows, and pipelines run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lnlit.data.sources import JsonlSource


@pytest.fixture
def rows_in(tmp_path: Path) -> Callable[..., JsonlSource]:
    """`rows_in(rows)` is a source of rows in a file."""

    def write(rows: Iterable[dict[str, Any]], name: str = "rows") -> JsonlSource:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return JsonlSource(str(file))

    return write


@pytest.fixture
def curated(tmp_path: Path) -> Callable[..., tuple[list[dict[str, Any]], dict[str, dict[str, int]]]]:
    """`curated(source, steps)` runs a pipeline; (rows, reasons of drops by step)."""
    from lnlit.stages.curate import curate

    def run(source: Any, steps: list[Any], **options: Any) -> tuple[list[Any], dict[str, dict[str, int]]]:
        out = tmp_path / options.pop("name", "out.jsonl")
        curate(source, steps, str(out), tasks=options.pop("tasks", 3), **options)
        counts = json.loads(out.with_name(f"{out.stem}.counts.json").read_text())["steps"]
        for before, after in pairwise(counts):
            assert before["rows_out"] == after["rows_in"]
        return [json.loads(line) for line in out.read_text().split("\n")[:-1]], {
            count["step"]: count["dropped"] for count in counts
        }

    return run
