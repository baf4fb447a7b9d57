"""Exchange of Python objects on the CPU between ranks that train different things on the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import distributed

from lnlit.errors import UserError
from lnlit.interfaces import TokenBatch

K = TypeVar("K")
V = TypeVar("V")


def is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def my_place() -> tuple[int, int]:
    """(this rank, number of ranks)."""
    return (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)


def all_gather(mine: V) -> list[V]:
    """The values of all ranks, in the order of ranks."""
    return _gathered(mine) if is_distributed() else [mine]


def rows_of_all_ranks(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """The rows of all ranks in one batch, in the order of ranks, as if one rank had them all."""
    if is_distributed():
        mine = (batch.tokens.cpu(), batch.labels.cpu(), batch.positions.cpu(), batch.lengths)
        everyone = _gathered(mine)
        if len(widths := {tokens.shape[1] for tokens, *_ in everyone}) > 1:
            raise UserError(f"data: the ranks' rows have different lengths {sorted(widths)}; set data.packing: true.")
        tensors = (torch.cat(parts) for parts in list(zip(*everyone, strict=True))[:3])
        batch = TokenBatch(*tensors, lengths=[length for *_, lengths in everyone for length in lengths])
    return TokenBatch(batch.tokens.to(device), batch.labels.to(device), batch.positions.to(device), batch.lengths)


def merged(mine: dict[K, V]) -> dict[K, V]:
    """The union of all ranks' entries."""
    if not is_distributed():
        return mine
    return {key: value for entries in _gathered(mine) for key, value in entries.items()}


def streamed(owners: Mapping[K, int], get: Callable[[K], V]) -> Iterator[tuple[K, V]]:
    """Yields (key, the owner's `get(key)`) on rank 0, one at a time. Other ranks must iterate too and get nothing."""
    rank = distributed.get_rank() if is_distributed() else 0
    for key, owner in owners.items():
        held = [get(key) if rank == owner else None]
        if rank == owner != 0:
            distributed.send_object_list(held, dst=0)
        if rank == 0 != owner:
            distributed.recv_object_list(held, src=owner)
        if rank == 0:
            yield key, held[0]  # type: ignore[misc]


def _gathered(mine: V) -> list[V]:
    everyone: list[V | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    return everyone  # type: ignore[return-value]
