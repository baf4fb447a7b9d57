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
from lnlit.search.targets import Target

_TIMES = ("prefill_s", "decode_s", "latency_s", "throughput")


def corrected(targets: Sequence[Target], file: Path, engine: str, dtype: str) -> tuple[Target, ...]:
    """`targets` with the bounds on times tightened by what the last model of `file`, which `lnlit search verify` wrote,
    missed of its prediction; bounds `of_parent` by what it missed relative to the first model. None is ever loosened.

    Raises `UserError` for a file of another engine or dtype, or without the costs that the targets name.
    """
    data = read_json(file, "measured models")
    try:
        models, theirs = data["models"], (data["engine"], data["dtype"])
        parent, child = models[0], models[-1]
        factors = {
            target.cost: _shortfall(child, target.cost) / (_shortfall(parent, target.cost) if target.of_parent else 1.0)
            for target in targets
            if target.cost in _TIMES
        }
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{file}: is no file of `lnlit search verify` with these costs: {error!r}.") from error
    if theirs != (engine, dtype):
        raise UserError(f"{file}: measured with {' in '.join(theirs)}, the cost table with {engine} in {dtype}.")
    return tuple(_tightened(target, max(factors.get(target.cost, 1.0), 1.0)) for target in targets)


def _shortfall(model: Mapping[str, Any], cost: str) -> float:
    """How many times slower a model was than predicted, in the worst workload."""
    pairs = [
        (model["predicted"][key], found) for key, found in model["measured"].items() if key.split(" @ ")[0] == cost
    ]
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
    print(f"solve: {missed}, so asking for {asked}", file=sys.stderr, flush=True)
    return replace(target, **{side: bound})
