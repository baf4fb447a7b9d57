"""Plans as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lnlit.planning.plan import MFU, Plan, gigabytes, largest
from lnlit.planning.training import total


def summary(plans: Sequence[Plan]) -> str:
    """One line for each stage, and the sum."""
    head = ("stage", "mesh", "peak GB", "of", "at", "disk GB", "step s", "GPU-hours", "")
    rows = [head, *map(_row, plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    hours = [plan.gpu_hours for plan in plans if plan.gpu_hours]
    if len(plans) > 1 and hours:
        low, high = (sum(each[end] for each in hours) for end in (0, 1))
        lines.append(f"together {_range(low, high)} GPU-hours, without stages of which no time is known")
    return "\n".join(lines)


def _row(plan: Plan) -> tuple[str, ...]:
    return (
        plan.stage,
        f"{plan.mesh.nodes} x {plan.mesh.gpus_per_node}, tp {plan.mesh.tensor_parallel}",
        gigabytes(plan.peak_bytes),
        gigabytes(plan.room),
        plan.peak[0],
        gigabytes(total(plan.disk)),
        _range(*plan.seconds) if plan.seconds else "",
        _range(*plan.gpu_hours) if plan.gpu_hours else "",
        "fits" if plan.fits else "does not fit",
    )


def details(plan: Plan) -> Iterator[str]:
    """Lines with each phase's parts, host, disk and what is assumed."""
    yield f"{plan.stage} on {plan.mesh}, {plan.gpu.name} ({gigabytes(plan.room)} GB for tensors)"
    beside = {name: parts for name, parts in (("node", plan.host), ("disk", plan.disk)) if any(parts.values())}
    for name, parts in {**plan.phases, **beside}.items():
        yield f"  {name:<9} {gigabytes(total(parts)):>8} GB  {largest(parts, 9)}"
    if plan.flops:
        yield f"  a step    {plan.flops:.3g} FLOPs" + (f", {_range(*plan.seconds)} s" if plan.seconds else "")
    for note in plan.notes:
        yield f"  note: {note}"


def assumptions(plan: Plan) -> str:
    """What the figures of a plan assume."""
    if plan.gpu.bf16_flops is None:
        return f"Memory of {plan.gpu.name}; no time, for its speed is not known."
    return (
        f"{plan.gpu.source}. Times: model FLOPs at {MFU[0]:.0%} to {MFU[1]:.0%} of {plan.gpu.bf16_flops / 1e12:,.0f} "
        "TFLOP/s, completions of full length."
    )


def _range(low: float, high: float) -> str:
    return f"{_number(low)}-{_number(high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
