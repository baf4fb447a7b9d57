"""What a measured child teaches the next search.

A cost table's times are sums of parts, and the best child is the one whose sum errs most in its own favour. Where it
was measured slower than predicted, the next search asks for that much more.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.interfaces import Workload
from lnlit.progress import say
from lnlit.search.costs import CostTable
from lnlit.search.problem import workload_name
from lnlit.search.targets import Target

_TIMES = ("prefill_s", "decode_s", "latency_s", "throughput")


def corrected(
    targets: Sequence[Target], file: Path, table: CostTable, workloads: Sequence[Workload]
) -> tuple[Target, ...]:
    """`targets` with the bounds on times tightened by what the last model of `file`, which `lnlit search verify` wrote,
    missed of its prediction in any of `workloads`; bounds `of_parent` by what it missed relative to the first model.
    None is ever loosened.

    Raises `UserError` for a file of another engine or dtype, of other workloads, whose predictions are another table's,
    or without the costs that the targets name.
    """
    data = read_json(file, "measured models")
    try:
        _check_same(data, file, table, workloads)
        parent, child = data["models"][0], data["models"][-1]
        factors = {
            target.cost: _shortfall(child, target.cost, workloads)
            / (_shortfall(parent, target.cost, workloads) if target.of_parent else 1.0)
            for target in targets
            if target.cost in _TIMES
        }
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{file}: is no file of `lnlit search verify` with these costs: {error!r}.") from error
    return tuple(_tightened(target, max(factors.get(target.cost, 1.0), 1.0)) for target in targets)


def _check_same(data: Mapping[str, Any], file: Path, table: CostTable, workloads: Sequence[Workload]) -> None:
    engine, dtype = data["engine"], data["dtype"]
    if (engine, dtype) != (table.engine, table.dtype):
        raise UserError(
            f"{file}: measured with {engine} in {dtype}, the cost table with {table.engine} in {table.dtype}."
        )
    wanted = [workload_name(workload) for workload in workloads]
    if "workloads" in data:
        known = [workload_name(Workload(**each)) for each in data["workloads"]]
    else:  # an older lnlit named them where there were several
        known = sorted({key.split(" @ ")[1] for key in data["models"][-1]["measured"] if " @ " in key}) or wanted
        print(
            f"{file}: an older lnlit wrote it and did not say what it was measured beside; taken as of this cost table "
            f"and {' and '.join(known)}",
            file=sys.stderr,
        )
    if missing := [name for name in wanted if name not in known]:
        raise UserError(
            f"{file}: measured {' and '.join(known)}, not {' and '.join(missing)} (requests x prompt + new tokens), "
            "which the targets are for. Measure this workload with `lnlit search verify`, or leave corrected_by out."
        )
    if data.get("costs_sha256", table.sha256) != table.sha256:
        raise UserError(
            f"{file}: its predictions are those of another cost table, so what they missed says nothing of this one's. "
            "Run `lnlit search verify` again beside this table."
        )


def _shortfall(model: Mapping[str, Any], cost: str, workloads: Sequence[Workload]) -> float:
    """How many times slower a model was than predicted, in the worst of the workloads."""
    keys = {cost, *(f"{cost} @ {workload_name(workload)}" for workload in workloads)}
    pairs = [(model["predicted"][key], found) for key, found in model["measured"].items() if key in keys]
    if not pairs:
        raise KeyError(cost)
    return max(promised / found if cost == "throughput" else found / promised for promised, found in pairs)


def _tightened(target: Target, factor: float) -> Target:
    """A throughput is bounded from below, a time from above; the other side of either stays."""
    if factor == 1.0:
        return target
    faster = target.cost == "throughput"
    side, bound = ("min", target.min) if faster else ("max", target.max)
    if bound is None:
        return target
    bound = bound * factor if faster else bound / factor
    asked = f"{target.cost} {side} {bound:.4g}{' of the parent' if target.of_parent else ''}"
    missed = f"the measured child was {factor - 1:.1%} worse than predicted"
    say(f"solve: {missed}, so asking for {asked}")
    return replace(target, **{side: bound})
