"""From a library with its scores and costs to the `Problem` that a solver gets.

A cost table's times are sums of parts, and the best child is the one whose sum errs most in its own favour. Where it
was measured slower than predicted, the next search asks for that much more: `corrected`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lnlit.errors import UserError, did_you_mean
from lnlit.files import read_json
from lnlit.interfaces import Budget, Choice, Forbidden, Problem, Scenario, Solution, Workload
from lnlit.interfaces.patterns import fitting
from lnlit.progress import say
from lnlit.schema import is_finite
from lnlit.search.choice import NO_ATTENTION, SLOTS
from lnlit.search.costs import THROUGHPUTS, CostTable, tokens_per_s
from lnlit.search.library import Library
from lnlit.search.score import Scores
from lnlit.search.targets import Rules, Solutions, Target, cost_at
from lnlit.specs import NOOP

MIB = 2**20
_TIMES = {"prefill_s", "decode_s", "latency_s", *THROUGHPUTS}


def make_problem(
    library: Library,
    scores: Scores,
    costs: CostTable,
    workloads: Sequence[Workload],
    targets: Sequence[Target],
    *,
    rules: Rules = Rules(),
    solutions: Solutions = Solutions(),
) -> Problem:
    """The problem of the best child of `library` within `targets`.

    Each workload is a scenario: the targets must hold for it, and the best child of all scenarios wins, as Puzzle
    chooses its batch size.

    Raises `UserError` for a target that cannot be stated, a candidate without score or cost, foreign scores, a pattern
    of `rules` that fits nothing.
    """
    _check_rules(library, rules)
    if not workloads:
        raise UserError("deployment.workloads: there are none; name at least one that the cost table has.")
    scores.check_library(library)
    _check_costs(library, costs)
    if any(target.cost in _TIMES for target in targets):
        for workload in workloads:
            costs.check_timed(workload)
    tables = [_Costs(costs, workload, _cached_tokens(targets)) for workload in workloads]
    labels = [str(workload) if len(workloads) > 1 else "" for workload in workloads]
    layers = []
    for layer in range(len(library.layers)):
        choices = []
        for halves in library.layers[layer].choices(rules.attention, rules.ffn):
            block = library.block_spec(layer, halves)
            priced = _labelled(labels, [table.of(costs.block(block, table.workload)) for table in tables])
            choices.append(Choice(str(halves), scores.of(layer, halves), priced))
        layers.append(tuple(choices))
    parents = [table.of(costs.predict(library.spec, table.workload)) for table in tables]
    budgets = []
    for table, label, parent in zip(tables, labels, parents, strict=True):
        absolute = [_absolute(target, parent, table.workload) for target in targets]
        budgets.append(tuple(_budget(target, table, label) for target in absolute))
    return Problem(
        layers=tuple(layers),
        budgets=budgets[0] if len(workloads) == 1 else (),
        base_costs=_labelled(labels, [table.of(costs.base(table.workload)) for table in tables]),
        parent_costs=_labelled(labels, parents),
        counts=tuple(rules.counts),
        forbidden=(*rules.forbidden, *(_first_attention(layers[0], library) if rules.first_attention else ())),
        num_solutions=solutions.number,
        max_overlap=solutions.max_overlap,
        scenarios=tuple(map(Scenario, labels, budgets)) if len(workloads) > 1 else (),
        library=library.identity,
    )


@dataclass(frozen=True)
class _Costs:
    """The costs of a workload; if tokens are to be cached, also the MiB of the weights with the cache of that many
    tokens."""

    table: CostTable
    workload: Workload
    cached_tokens: float | None

    def of(self, costs: Mapping[str, float]) -> dict[str, float]:
        if self.cached_tokens is None:
            return dict(costs)
        cache_mib = costs["kv_bytes_per_token"] * self.cached_tokens / MIB
        return {**costs, "cached_tokens_mib": costs["weight_mib"] + cache_mib}


def narrowed(problem: Problem, layers: Sequence[Sequence[Choice]]) -> Problem | None:
    """The problem with some of its allowed choices, which may have other scores, and one solution. None if a layer has
    none or a count cannot be kept."""
    names = {choice.name for layer in layers for choice in layer}
    counts = tuple(count for count in problem.counts if fitting(count.names, names))
    if not all(layers) or any(count.min for count in problem.counts if count not in counts):
        return None
    return problem.replace(layers=tuple(map(tuple, layers)), counts=counts, forbidden=(), num_solutions=1)


def of_problem(problem: Problem, solution: Solution) -> Solution:
    """A solution of a problem with other scores, with its score and costs in this one, of which nothing is proven."""
    score, costs = problem.totals(solution.choice)
    return replace(solution, score=score, costs=costs, bound=None, gap=None, seconds=0.0)


def _labelled(labels: Sequence[str], costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The costs of all workloads side by side, e.g. "memory_mib @ 64x512+128" if there are several."""
    pairs = zip(labels, costs, strict=True)
    return {cost_at(cost, label): float(value) for label, some in pairs for cost, value in some.items()}


def _cached_tokens(targets: Iterable[Target]) -> float | None:
    wanted = [target.min for target in targets if target.cost == "cached_tokens"]
    if len(wanted) > 1:
        raise UserError(f"deployment.targets: cached_tokens is there {len(wanted)} times; state one.")
    return wanted[0] if wanted else None


def _absolute(target: Target, parent: Mapping[str, float], workload: Workload) -> Target:
    """A target that is relative to the parent's cost, converted to the cost's own unit."""
    if not target.of_parent:
        return target
    whole = dict(parent)
    if target.cost in THROUGHPUTS:
        whole[target.cost] = tokens_per_s(workload, parent["latency_s"], target.cost)
    if target.cost not in whole:
        allowed = ", ".join(sorted({*whole, *THROUGHPUTS}))
        raise UserError(f"deployment.targets: {target.cost!r} cannot be of_parent. Allowed: {allowed}.")
    low, high = (None if bound is None else bound * whole[target.cost] for bound in (target.min, target.max))
    return replace(target, min=low, max=high, of_parent=False)


def _budget(target: Target, table: _Costs, label: str) -> Budget:
    """A target as bounds of a cost that adds up over layers."""
    if target.room_mib is not None and target.cost != "cached_tokens":
        raise UserError(
            f"deployment.targets: room_mib belongs to cached_tokens, not to {target.cost}, whose bounds are min and "
            "max."
        )
    if target.cost not in (*THROUGHPUTS, "cached_tokens"):
        known = table.of(table.table.base(table.workload))
        if target.cost not in known:
            allowed = sorted({*known, *THROUGHPUTS, "cached_tokens"} - {"cached_tokens_mib"})
            raise UserError(
                f"deployment.targets: unknown cost {target.cost!r}.{did_you_mean(target.cost, allowed)} "
                f"Allowed: {', '.join(allowed)}."
            )
        return Budget(cost_at(target.cost, label), target.min, target.max)
    low = target.min
    if low is None or target.max is not None or not math.isfinite(low) or low <= 0:
        raise UserError(
            f"deployment.targets: {target.cost} takes a positive min and no max, got {target.min} and {target.max}."
        )
    if target.cost in THROUGHPUTS:  # tokens / latency >= min, so latency <= tokens / min
        return Budget(cost_at("latency_s", label), max=tokens_per_s(table.workload, low, target.cost))
    if target.room_mib is None:
        raise UserError(
            "deployment.targets: cached_tokens needs room_mib, the memory that the cache shares with the weights."
        )
    return Budget(cost_at("cached_tokens_mib", label), max=target.room_mib)


def _check_costs(library: Library, costs: CostTable) -> None:
    """Accepts a cost table of another library, with a note, if it has all parts of this one, since a part costs the
    same whatever its weights are. Otherwise raises `UserError` naming both."""
    if not costs.library or costs.library["sha256"] == library.identity["sha256"]:
        return
    for layer, variants in enumerate(library.layers):
        for slot in SLOTS:
            for name, variant in getattr(variants, slot).items():
                if variant.part not in getattr(costs, slot):
                    raise UserError(
                        f"costs: the table was measured for the library {costs.library['folder']}, which lacks {slot} "
                        f"{name!r} of layer {layer} of {library.folder}. Measure this library."
                    )
    print(
        f"solve: the cost table was measured for the library {costs.library['folder']}; it has all parts of "
        f"{library.folder}, which cost the same there",
        file=sys.stderr,
    )


def _check_rules(library: Library, rules: Rules) -> None:
    for slot in SLOTS:
        names = list(dict.fromkeys(name for layer in library.layers for name in getattr(layer, slot)))
        for pattern in getattr(rules, slot):
            if not fitting(pattern, names):
                raise UserError(
                    f"rules.{slot}: {pattern!r} fits no variant of the library.{did_you_mean(pattern, names)} There "
                    f"are: {', '.join(names)}."
                )


def _first_attention(choices: Sequence[Choice], library: Library) -> list[Forbidden]:
    """The rule that keeps attention in layer 0, if the layer has attention and a choice without it."""
    removable = bool(fitting(NO_ATTENTION, (choice.name for choice in choices)))
    return [Forbidden(0, NO_ATTENTION)] if removable and library.spec.layers[0].attention != NOOP else []


# what a measured child teaches the next search


def corrected(
    targets: Sequence[Target], file: Path, table: CostTable, workloads: Sequence[Workload]
) -> tuple[Target, ...]:
    """`targets` with stricter bounds on times and throughputs, because an earlier child was slower than predicted.

    `file` is what `lnlit search verify` wrote, with the parent first and that child last; models after it that the
    table could not predict are passed over. Each bound is tightened by
    the factor by which the child missed its prediction in the worst of `workloads`, divided by the parent's factor if
    the bound is `of_parent`. No bound is loosened.

    Raises `UserError` for a file of another engine or dtype, of other workloads, whose predictions are another table's,
    or without the costs that the targets name.
    """
    data = read_json(file, "measured models")
    try:
        _check_same(data, file, table, workloads)
        parent, child = data["models"][0], [model for model in data["models"] if model["predicted"]][-1]
        factors = {
            target.cost: _shortfall(child, target.cost, workloads)
            / (_shortfall(parent, target.cost, workloads) if target.of_parent else 1.0)
            for target in targets
            if target.cost in _TIMES
        }
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{file}: is no file of `lnlit search verify` with these costs: {error!r}.") from error
    return tuple(_tightened(target, max(factors.get(target.cost, 1.0), 1.0)) for target in targets)


def _check_same(data: Mapping[str, Any], file: Path, table: CostTable, workloads: Sequence[Workload]) -> None:
    engine, dtype = data["engine"], data["dtype"]
    if (engine, dtype) != (table.engine, table.dtype):
        raise UserError(
            f"{file}: measured with {engine} in {dtype}, the cost table with {table.engine} in {table.dtype}."
        )
    wanted = list(map(str, workloads))
    if "workloads" in data:
        known = [str(Workload(**each)) for each in data["workloads"]]
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
            "which the targets are for. Measure this workload with `lnlit search verify`, or leave "
            "deployment.corrected_by out."
        )
    if data.get("costs_sha256", table.sha256) != table.sha256:
        raise UserError(
            f"{file}: its predictions are those of another cost table, so what they missed says nothing of this one's. "
            "Run `lnlit search verify` again beside this table."
        )


def _shortfall(model: Mapping[str, Any], cost: str, workloads: Sequence[Workload]) -> float:
    """How many times slower a model was than predicted, in the worst of the workloads. Throughputs of all tokens and of
    new ones miss alike, and the former are in the file.
    """
    cost = "throughput" if cost in THROUGHPUTS else cost
    keys = {cost, *(cost_at(cost, str(workload)) for workload in workloads)}
    pairs = [(model["predicted"][key], found) for key, found in model["measured"].items() if key in keys]
    if not pairs:
        raise KeyError(cost)
    if not all(is_finite(value) and value > 0 for pair in pairs for value in pair):
        raise ValueError(f"{cost} was predicted and measured as {pairs}, which must be above 0")
    return max(promised / found if cost == "throughput" else found / promised for promised, found in pairs)


def _tightened(target: Target, factor: float) -> Target:
    """The target with the minimum of a throughput multiplied by `factor`, or the maximum of a time divided by it. The
    other bound stays. Prints a note."""
    if factor == 1.0:
        return target
    faster = target.cost in THROUGHPUTS
    side, bound = ("min", target.min) if faster else ("max", target.max)
    if bound is None:
        return target
    bound = bound * factor if faster else bound / factor
    asked = f"{target.cost} {side} {bound:.4g}{' of the parent' if target.of_parent else ''}"
    missed = f"the measured child was {factor - 1:.1%} worse than predicted"
    say(f"solve: {missed}, so asking for {asked}")
    return replace(target, **{side: bound})
