"""Blends: several sources in ordered stages, each by weight or by count (Llama-Nemotron sections 3 and 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from lnlit.errors import UserError
from lnlit.interfaces import Source


@dataclass
class BlendEntry:
    """One source in a blend. Say how much of it with at most one of `weight`, `rows` and `epochs`; default: all of it.

    Args:
        source: The source of the rows.
        weight: Share of the stage's rows, relative to the other weights of the stage. The stage ends when the first
            source runs out, so no row is repeated. Weights and counts cannot be mixed within a stage.
        rows: Number of rows. If it exceeds the source's size, the source starts over.
        epochs: Number of passes over the source, e.g. 4 in the first stage of LN-Nano.
        stage: Stages are seen in ascending order.
    """

    source: Source
    weight: float | None = None
    rows: int | None = None
    epochs: int | None = None
    stage: int = 1


def in_stages(entries: Sequence[BlendEntry]) -> list[list[BlendEntry]]:
    """The entries of each stage, in order. Raises `UserError` for amounts that make no sense."""
    if not entries:
        raise UserError("train: the blend is empty; give at least one source")
    for number, entry in enumerate(entries):
        amounts = {"weight": entry.weight, "rows": entry.rows, "epochs": entry.epochs}
        given = {name: value for name, value in amounts.items() if value is not None}
        if len(given) > 1:
            raise UserError(f"train[{number}]: give one of weight, rows and epochs, got {' and '.join(given)}")
        for name, value in given.items():
            if not (value > 0 and isfinite(value)):
                raise UserError(f"train[{number}].{name}: expected a positive number, got {value}")
    stages = [[entry for entry in entries if entry.stage == stage] for stage in sorted({e.stage for e in entries})]
    for stage in stages:
        weighted = [entry for entry in stage if entry.weight is not None]
        if weighted and len(weighted) < len(stage):
            raise UserError(
                f"train, stage {stage[0].stage}: {len(weighted)} of {len(stage)} sources have a weight. Give all of a "
                "stage's sources weights, or none."
            )
    return stages


def row_counts(stage: Sequence[BlendEntry], sizes: Sequence[int]) -> list[int]:
    """The number of rows that each entry of a stage contributes, given the size of its source."""
    if stage[0].weight is None:
        return [entry.rows or size * (entry.epochs or 1) for entry, size in zip(stage, sizes, strict=True)]
    weights = [entry.weight or 0.0 for entry in stage]
    total = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    return [min(size, round(total * weight)) for size, weight in zip(sizes, weights, strict=True)]


def next_source(taken: Sequence[int], shares: Sequence[float]) -> int:
    """The source to take the next row from, so that every prefix of the mix is close to `shares`. Arguments are the
    rows taken so far and the relative amounts."""
    return min(range(len(shares)), key=lambda i: (taken[i] + 0.5) / shares[i])


def interleave(counts: Sequence[int]) -> np.ndarray:
    """Source numbers, each i occurring `counts[i]` times, in the order that `next_source` would choose."""
    turns = [(np.arange(count) + 0.5) / count for count in counts if count]
    numbers = [np.full(count, number) for number, count in enumerate(counts) if count]
    if not turns:
        return np.empty(0, dtype=np.int64)
    return np.concatenate(numbers)[np.argsort(np.concatenate(turns), kind="stable")]
