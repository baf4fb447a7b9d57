"""What a person asks of a search, as plain data."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from lnlit.errors import UserError
from lnlit.search.frontier import Side
from lnlit.specs import NOOP

#: A child that costs so many times what its parent does is nobody's wish: the share was meant in percent.
_PERCENT = 10.0


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

    def __post_init__(self) -> None:
        if self.of_parent and self.max is not None:
            check_shares("targets", self.cost, [self.max])


@dataclass(frozen=True)
class Parts:
    """Patterns over variant names: what a search may use beside the parent's own choices, which it always may."""

    attention: tuple[str, ...] = ("*",)
    ffn: tuple[str, ...] = ("*",)


ALL_PARTS = Parts()
NOOP_ONLY = Parts((NOOP.type,), (NOOP.type,))


@dataclass(frozen=True)
class Sweep:
    """A frontier: the values that one side of a cost's budget takes, one solve each. `of_parent` as in `Target`."""

    cost: str
    values: tuple[float, ...]
    side: Side = "max"
    of_parent: bool = False

    def __post_init__(self) -> None:
        if self.of_parent and self.side == "max":
            check_shares("frontier", self.cost, self.values)


def check_shares(where: str, cost: str, shares: Iterable[float]) -> None:
    """Upper bounds in shares of what the parent costs: says where one bounds nothing, as the parent itself keeps it.

    Raises `UserError` for one that can only have been meant in percent.
    """
    for share in shares:
        told = f"{where}: {cost} max {share:g} of_parent is {share:g} times what the parent costs"
        if share >= _PERCENT:
            raise UserError(
                f"{told}. Shares are parts of 1: write {share / 100:g} for {share:g} %, or leave of_parent out for "
                f"{share:g} in the cost's own unit."
            )
        if share > 1:
            print(f"{told}, so the parent itself keeps it", file=sys.stderr)
