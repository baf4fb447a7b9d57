"""What a person asks of a search, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from lnlit.search.frontier import Side


@dataclass(frozen=True)
class Target:
    """What the child must keep: bounds of one of its costs.

    `cost` is one that the cost table has (memory_mib, weight_mib, kv_mib, parameters, latency_s, prefill_s, decode_s,
    kv_bytes_per_token), or `throughput` in tokens/s (only a `min`), or `cached_tokens` (only a `min`): the tokens whose
    keys and values fit beside the weights into `room_mib`, which belongs to this cost alone.
    `of_parent`: the bounds are shares of what the parent costs, as `throughput` with a `min` of 1.3.
    """

    cost: str
    min: float | None = None
    max: float | None = None
    of_parent: bool = False
    room_mib: float | None = None


@dataclass(frozen=True)
class Parts:
    """Patterns over variant names: what a search may use beside the parent's own choices, which it always may."""

    attention: tuple[str, ...] = ("*",)
    ffn: tuple[str, ...] = ("*",)


ALL_PARTS = Parts()
NOOP_ONLY = Parts(("noop",), ("noop",))


@dataclass(frozen=True)
class Sweep:
    """A frontier: the values that one side of a cost's budget takes, one solve each. `of_parent` as in `Target`."""

    cost: str
    values: tuple[float, ...]
    side: Side = "max"
    of_parent: bool = False
