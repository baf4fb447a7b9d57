"""The table of a pipeline: rows into and out of each step, and how many were dropped for which reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datatrove.utils.typeshelper import StatHints

_REASON = f"{StatHints.dropped}_"


@dataclass(frozen=True)
class Count:
    """Rows that came into a step and went on, and those dropped by reason. Other figures of the step are `notes`."""

    step: str
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)


def counted(logs: Iterable[Path]) -> list[Count]:
    """The counts of all steps in order, summed over the tasks of each part of a pipeline. Blocks that see no rows have
    none."""
    return [count for folder in logs for count in _of_part(folder)]


def _of_part(folder: Path) -> list[Count]:
    steps: dict[int, str] = {}
    totals: dict[int, Counter[str]] = {}
    for file in sorted((folder / "stats").glob("*.json")):
        for number, block in enumerate(json.loads(file.read_text(encoding="utf-8"))):
            steps[number] = block["name"].rpartition(": ")[2]
            own = totals.setdefault(number, Counter())
            for label, found in block["stats"].items():
                own[label] += round(found["total"] if isinstance(found, dict) else found)
    sees_rows = {number for number, own in totals.items() if {StatHints.total, StatHints.forwarded} & own.keys()}
    return [_count(step, totals[number]) for number, step in steps.items() if number in sees_rows]


def _count(step: str, totals: Counter[str]) -> Count:
    reasons = {label.removeprefix(_REASON): n for label, n in totals.items() if label.startswith(_REASON)}
    if rest := totals[StatHints.dropped] - sum(reasons.values()):
        reasons["without a reason"] = rest
    known = {StatHints.total, StatHints.forwarded, StatHints.dropped, "doc_len", "doc_len_tokens", "batches"}
    notes = {label: n for label, n in totals.items() if label not in known and not label.startswith(_REASON)}
    return Count(step, totals[StatHints.total], totals[StatHints.forwarded], dict(sorted(reasons.items())), notes)


def table(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The counts as lines of text."""
    rows = [["step", "rows in", "rows out", "dropped"]]
    for count in counts:
        said = ", ".join(f"{reason} {n:,}" for reason, n in count["dropped"].items())
        notes = ", ".join(f"{label} {n:,}" for label, n in count["notes"].items())
        told = "; ".join(part for part in (said, f"({notes})" if notes else "") if part)
        rows.append([count["step"], f"{count['rows_in']:,}", f"{count['rows_out']:,}", told])
    return aligned(rows, left=(0, 3))


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Rows of text in columns, which are aligned to the right but for those in `left`."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = (
        [text.ljust(width) if column in left else text.rjust(width) for column, (text, width) in enumerate(pairs)]
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return ["  ".join(row).rstrip() for row in cells]
