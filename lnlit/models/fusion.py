"""FFN Fusion: runs of attention-free layers become fewer, wider FFNs (Bercovich et al. 2025; Llama-Nemotron 2.2).

Puzzle leaves runs of layers without attention. Such layers change the residual stream little and hardly depend on each
other, so a run x + FFN_1(x) + FFN_2(x + FFN_1(x)) + ... is approximated by x + sum_j FFN_j(x), which is one FFN: exact
algebra (`surgery.fuse_ffns`), an approximation only from sequential to parallel. A `FusionPlan` says which layers go
together; `fused`, `removed` and `in_reverse` turn it into the child's `Lineage`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from lnlit.errors import UserError
from lnlit.interfaces.layer import Norm
from lnlit.models.build import build_block, parameter_count
from lnlit.models.lineage import EMPTY, Lineage, can_fuse, fusable_kind, fused_ffn
from lnlit.models.parts import ffn_class
from lnlit.models.pipeline import split_evenly
from lnlit.schema import Whole, read
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec


@dataclass(frozen=True)
class FusionPlan:
    """The layers to fuse: each of `groups` lists layers in ascending order that become one layer. `left_out` are the
    last layers of runs, which are the most sensitive and stay as they are. `norm` is explained at
    `interfaces.layer.Norm`."""

    groups: tuple[tuple[Whole, ...], ...]
    left_out: tuple[Whole, ...] = ()
    norm: Norm = "own"

    def to_json(self) -> dict[str, Any]:
        return {"groups": [list(group) for group in self.groups], "left_out": list(self.left_out), "norm": self.norm}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "plan") -> FusionPlan:
        """Reads a plan. Raises `UserError` naming what is wrong."""
        return read(cls, data, where)


def attention_free_runs(spec: ModelSpec) -> list[tuple[int, ...]]:
    """The maximal runs of FFN layers of one kind without attention. Layers with two empty slots do not interrupt a run
    and are not listed."""
    kinds = [(index, fusable_kind(block)) for index, block in enumerate(spec.layers) if block != EMPTY]
    runs = (list(run) for kind, run in groupby(kinds, key=itemgetter(1)) if kind is not None)
    return [tuple(index for index, _ in run) for run in runs]


def plan_fusion(
    spec: ModelSpec,
    *,
    leave_out: int = 1,
    max_width: int | None = None,
    max_bytes: int | None = None,
    bytes_per_weight: int = 2,
    norm: Norm = "own",
) -> FusionPlan:
    """Plans to fuse every run except its last `leave_out` layers, into as few FFNs as the limits allow and of similar
    width.

    `max_width` limits a fused FFN's channels, `max_bytes` the size of its weights and norm at `bytes_per_weight` each.
    An FFN that cannot be fused with a neighbour within the limits stays alone.
    """
    for name, value, least in (("leave_out", leave_out, 0), ("max_width", max_width, 1), ("max_bytes", max_bytes, 1)):
        if value is not None and value < least:
            raise UserError(f"fusion: {name} must be at least {least}, got {value}.")
    runs = [run for run in attention_free_runs(spec) if len(run) > 1]
    groups = []
    for run in runs:
        layers = run[: max(len(run) - leave_out, 0)]
        widths = [_channels(spec.layers[index].ffn) for index in layers]
        cap = max_width or sum(widths)
        if max_bytes is not None and layers:
            cap = min(cap, _width_within(max_bytes // bytes_per_weight, spec, layers))
        groups += [layers[part.start : part.stop] for part in _split_under(widths, cap) if len(part) > 1]
    return FusionPlan(tuple(groups), tuple(chain(*(run[max(len(run) - leave_out, 0) :] for run in runs))), norm)


def fused(spec: ModelSpec, plan: FusionPlan) -> Lineage:
    """The lineage in which each group becomes one layer."""
    return _with_groups(spec, plan, lambda group: (group,))


def removed(spec: ModelSpec, plan: FusionPlan) -> Lineage:
    """The lineage in which only the last layer of each group stays: a baseline as deep as the fused model."""
    return _with_groups(spec, plan, lambda group: (group[-1:],))


def in_reverse(spec: ModelSpec, plan: FusionPlan) -> Lineage:
    """The lineage in which the layers of each group run in reverse order. If reversing them does little harm, so does
    fusing them."""
    return _with_groups(spec, plan, lambda group: tuple((index,) for index in reversed(group)))


def _with_groups(spec: ModelSpec, plan: FusionPlan, made: Callable[[tuple[int, ...]], Lineage]) -> Lineage:
    """The lineage with `made(group)` in the place of each group. Layers with two empty slots inside a group are
    dropped."""
    _check_plan(spec, plan)
    first = {group[0]: group for group in plan.groups}
    inside = {index for group in plan.groups for index in range(group[0], group[-1] + 1)}
    places = (made(first[i]) if i in first else () if i in inside else ((i,),) for i in range(len(spec.layers)))
    return tuple(chain.from_iterable(places))


def _check_plan(spec: ModelSpec, plan: FusionPlan) -> None:
    claimed: set[int] = set()
    for group in plan.groups:
        name = f"fusion: group {list(group)}"
        if len(group) < 2 or list(group) != sorted(set(group)):
            raise UserError(f"{name} must be two or more layers in ascending order.")
        if group[0] < 0 or group[-1] >= len(spec.layers):
            raise UserError(f"{name}: the model has layers 0 to {len(spec.layers) - 1}.")
        for index in range(group[0], group[-1] + 1):
            block = spec.layers[index]
            if index in claimed:
                raise UserError(f"{name} overlaps another group at layer {index}; a layer can go to one group only.")
            alike = can_fuse(block, spec.layers[group[0]])
            if alike != (index in group) or (index not in group and block != EMPTY):
                why = "is not in the group" if alike else "is not a lone FFN that can be fused with the group's"
                raise UserError(f"{name}: layer {index} ({block.attention}, {block.ffn}) {why}.")
            claimed.add(index)


def _split_under(widths: Sequence[int], cap: int) -> list[range]:
    """Splits the layers into consecutive ranges whose widths sum to at most `cap`: as few as possible, then as even as
    possible."""
    parts: list[range] = []
    start = 0
    while start < len(widths):
        stop = start + 1  # a stretch between FFNs that are too wide by themselves
        while stop < len(widths) and widths[start] <= cap and widths[stop] <= cap:
            stop += 1
        stretch = widths[start:stop]
        parts += [range(start + p.start, start + p.stop) for p in split_evenly(stretch, _fewest(stretch, cap))]
        start = stop
    return parts


def _fewest(widths: Sequence[int], cap: int) -> int:
    count, filled = 1, 0
    for width in widths:
        count, filled = (count, filled + width) if filled + width <= cap or not filled else (count + 1, width)
    return count


def _width_within(weights: int, spec: ModelSpec, layers: Sequence[int]) -> int:
    """The largest number of channels with which an FFN like those of `layers`, with its norm, has at most `weights`
    weights. The number of weights is linear in the number of channels."""
    once = fused_ffn([spec.layers[index].ffn for index in layers])
    twice = fused_ffn([once, once])
    small, large = (parameter_count(build_block(spec, layers[0], BlockSpec(NOOP, ffn))) for ffn in (once, twice))
    per_channel = (large - small) // _channels(once)
    return max((weights - small + per_channel * _channels(once)) // per_channel, 1)


def _channels(ffn: PartSpec) -> int:
    channels = ffn_class(ffn).channels(ffn.args)
    assert channels is not None, f"{ffn} cannot be fused"
    return channels
