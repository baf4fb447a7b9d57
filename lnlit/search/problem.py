"""From a library with its scores and costs to the `Problem` that a solver gets."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lnlit.errors import UserError, did_you_mean
from lnlit.interfaces import Budget, Choice, Count, Forbidden, Problem, Scenario, Workload
from lnlit.interfaces.patterns import fitting
from lnlit.search.costs import CostTable, tokens_per_s
from lnlit.search.library import SLOTS, Library, pair_name
from lnlit.search.scores import Scores
from lnlit.search.targets import ALL_PARTS, Parts, Target
from lnlit.specs import NOOP

MIB = 2**20
_NO_ATTENTION = pair_name(NOOP.type, "*")


def make_problem(
    library: Library,
    scores: Scores,
    costs: CostTable,
    workloads: Sequence[Workload],
    targets: Sequence[Target],
    *,
    counts: Sequence[Count] = (),
    forbidden: Sequence[Forbidden] = (),
    num_solutions: int = 1,
    max_overlap: float = 0.8,
    parts: Parts = ALL_PARTS,
    generated_only: bool = False,
    first_attention: bool = True,
) -> Problem:
    """The problem of the best child of `library` within `targets`.

    Each workload is a scenario: the targets must hold for it, and the best child of all scenarios wins, as Puzzle
    chooses its batch size. `first_attention` keeps attention in layer 0, where the parent has it: many engines cannot
    run a model without. `generated_only` counts throughput in new tokens alone.

    Raises `UserError` for a target that cannot be stated, a candidate without score or cost, foreign scores, a pattern
    of `parts` that fits nothing.
    """
    _check_parts(library, parts)
    if not workloads:
        raise UserError("workloads: there are none; name at least one that the cost table has.")
    scores.check_library(library)
    _check_costs(library, costs)
    if any(target.cost in ("throughput", "latency_s", "prefill_s", "decode_s") for target in targets):
        for workload in workloads:
            costs.check_timed(workload)
    tables = [_Costs(costs, workload, _cached_tokens(targets)) for workload in workloads]
    labels = [workload_name(workload) if len(workloads) > 1 else "" for workload in workloads]
    layers = []
    for layer in range(len(library.layers)):
        choices = []
        for attention, ffn in _choices(library, layer, parts):
            block = library.block_spec(layer, attention, ffn)
            priced = _labelled(labels, [table.of(costs.block(block, table.workload)) for table in tables])
            choices.append(Choice(pair_name(attention, ffn), scores.of(layer, attention, ffn), priced))
        layers.append(tuple(choices))
    parents = [table.of(costs.predict(library.spec, table.workload)) for table in tables]
    budgets = []
    for table, label, parent in zip(tables, labels, parents, strict=True):
        absolute = [_absolute(target, parent, table.workload, generated_only) for target in targets]
        budgets.append(tuple(_budget(target, table, label, generated_only) for target in absolute))
    return Problem(
        layers=tuple(layers),
        budgets=budgets[0] if len(workloads) == 1 else (),
        base_costs=_labelled(labels, [table.of(costs.base(table.workload)) for table in tables]),
        parent_costs=_labelled(labels, parents),
        counts=tuple(counts),
        forbidden=(*forbidden, *(_first_attention(layers[0], library) if first_attention else ())),
        num_solutions=num_solutions,
        max_overlap=max_overlap,
        scenarios=tuple(map(Scenario, labels, budgets)) if len(workloads) > 1 else (),
        library=library.identity,
    )


def workload_name(workload: Workload) -> str:
    """As "64x512+128": requests x prompt + new tokens."""
    return f"{workload.batch_size}x{workload.prompt_tokens}+{workload.new_tokens}"


@dataclass(frozen=True)
class _Costs:
    """A workload's costs; where tokens are to be cached, also the MiB of the weights with that many tokens' cache."""

    table: CostTable
    workload: Workload
    cached_tokens: float | None

    def of(self, costs: Mapping[str, float]) -> dict[str, float]:
        if self.cached_tokens is None:
            return dict(costs)
        cache_mib = costs["kv_bytes_per_token"] * self.cached_tokens / MIB
        return {**costs, "cached_tokens_mib": costs["weight_mib"] + cache_mib}


def _labelled(labels: Sequence[str], costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The costs of all workloads side by side, as "memory_mib @ 64x512+128" where there are several."""
    pairs = zip(labels, costs, strict=True)
    return {_cost_name(cost, label): float(value) for label, some in pairs for cost, value in some.items()}


def _cost_name(cost: str, label: str) -> str:
    return f"{cost} @ {label}" if label else cost


def _cached_tokens(targets: Iterable[Target]) -> float | None:
    wanted = [target.min for target in targets if target.cost == "cached_tokens"]
    if len(wanted) > 1:
        raise UserError(f"targets: cached_tokens is there {len(wanted)} times; state one.")
    return wanted[0] if wanted else None


def _absolute(target: Target, parent: Mapping[str, float], workload: Workload, generated_only: bool) -> Target:
    """A target in shares of the parent's cost, in the cost's own unit."""
    if not target.of_parent:
        return target
    whole = dict(parent)
    if target.cost == "throughput":
        whole["throughput"] = tokens_per_s(workload, parent["latency_s"], generated_only)
    if target.cost not in whole:
        allowed = ", ".join(sorted({*whole, "throughput"}))
        raise UserError(f"targets: {target.cost!r} cannot be of_parent. Allowed: {allowed}.")
    low, high = (None if bound is None else bound * whole[target.cost] for bound in (target.min, target.max))
    return replace(target, min=low, max=high, of_parent=False)


def _budget(target: Target, table: _Costs, label: str, generated_only: bool) -> Budget:
    """A target as bounds of a cost that adds up over layers."""
    if target.room_mib is not None and target.cost != "cached_tokens":
        raise UserError(
            f"targets: room_mib belongs to cached_tokens, not to {target.cost}, whose bounds are min and max."
        )
    if target.cost not in ("throughput", "cached_tokens"):
        known = table.of(table.table.base(table.workload))
        if target.cost not in known:
            allowed = sorted({*known, "throughput", "cached_tokens"} - {"cached_tokens_mib"})
            raise UserError(
                f"targets: unknown cost {target.cost!r}.{did_you_mean(target.cost, allowed)} "
                f"Allowed: {', '.join(allowed)}."
            )
        return Budget(_cost_name(target.cost, label), target.min, target.max)
    low = target.min
    if low is None or target.max is not None or not math.isfinite(low) or low <= 0:
        raise UserError(f"targets: {target.cost} takes a positive min and no max, got {target.min} and {target.max}.")
    if target.cost == "throughput":  # tokens / latency >= min, so latency <= tokens / min
        return Budget(_cost_name("latency_s", label), max=tokens_per_s(table.workload, low, generated_only))
    if target.room_mib is None:
        raise UserError("targets: cached_tokens needs room_mib, the memory that the cache shares with the weights.")
    return Budget(_cost_name("cached_tokens_mib", label), max=target.room_mib)


def _check_costs(library: Library, costs: CostTable) -> None:
    """A part costs the same whatever its weights are: a table of another library will do where it has all parts of
    this one, which is told. Else raises `UserError` naming both.
    """
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


def _check_parts(library: Library, parts: Parts) -> None:
    for slot in SLOTS:
        names = list(dict.fromkeys(name for layer in library.layers for name in getattr(layer, slot)))
        for pattern in getattr(parts, slot):
            if not fitting(pattern, names):
                raise UserError(
                    f"parts.{slot}: {pattern!r} fits no variant of the library.{did_you_mean(pattern, names)} There "
                    f"are: {', '.join(names)}."
                )


def _first_attention(choices: Sequence[Choice], library: Library) -> list[Forbidden]:
    """The rule that keeps attention in layer 0, where there is one to keep and it could go."""
    removable = bool(fitting(_NO_ATTENTION, (choice.name for choice in choices)))
    return [Forbidden(0, _NO_ATTENTION)] if removable and library.spec.layers[0].attention != NOOP else []


def _choices(library: Library, layer: int, parts: Parts) -> list[tuple[str, str]]:
    """The pairs of variants that a layer may take, the parent's own first."""
    variants, own = library.layers[layer], library.parent_names(layer)
    halves = []
    for slot, name in zip(SLOTS, own, strict=True):
        names = getattr(variants, slot)
        wanted = {name, *(fit for pattern in getattr(parts, slot) for fit in fitting(pattern, names))}
        halves.append([known for known in names if known in wanted])
    return list(itertools.product(*halves))
