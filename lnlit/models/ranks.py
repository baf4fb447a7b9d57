"""Exchange between ranks: Python objects on the CPU, and tensors where they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lnlit.errors import UserError
from lnlit.interfaces import TokenBatch

K = TypeVar("K")
V = TypeVar("V")

#: How long a rank waits for what another has, such as its samples: longer than any engine or judge may take. A rank
#: that dies closes its connections, which ends the waiting at once.
_PATIENCE = timedelta(days=7)
#: (the process group of all ranks, the one that exchanges objects for it)
_exchanges: tuple[Any, Any] | None = None


class RankError(UserError):
    """What went wrong on one rank, as it is raised on every rank."""


@contextmanager
def all_ranks(device: torch.device) -> Iterator[None]:
    """Inside, the processes that torchrun has started talk to each other, about tensors on `device` too. They leave
    together: a `UserError` of one is raised on every rank, where that comes to its next exchange or here. So is one
    where another process has died."""
    is_ours = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized()
    if is_ours:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        with _told_of_the_dead():
            yield
            all_gather(None)
    except RankError:  # the others have it, too
        raise
    except UserError as error:
        with _told_of_the_dead():
            all_gather(error)
        raise
    if is_ours:
        distributed.destroy_process_group()


@contextmanager
def _told_of_the_dead() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's own errors have no class
        if "gloo/transport" not in str(error):
            raise
        raise RankError(
            "another process of this command has ended, and says why itself; this one cannot go on alone. What was "
            f"finished is kept: the same command goes on. ({str(error).rpartition('] ')[2].partition('. ')[0]})"
        ) from error


def is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def my_place(group: Any = None) -> tuple[int, int]:
    """(this rank, number of ranks) among all, or in a group of them."""
    return (distributed.get_rank(group), distributed.get_world_size(group)) if is_distributed() else (0, 1)


def all_gather(mine: V) -> list[V]:
    """The values of all ranks, in the order of ranks. Raises `RankError` if one of them is a `UserError`."""
    return _gathered(mine) if is_distributed() else [mine]


def batches_of(group: Any, batch: TokenBatch, device: torch.device) -> list[TokenBatch]:
    """The batches of the ranks of a group (None: of all), in their order. Every rank must ask for those of its group.
    Raises `UserError` if their rows have different lengths."""
    everyone = all_gather((batch.tokens.cpu(), batch.labels.cpu(), batch.positions.cpu(), batch.lengths))
    if group is not None:
        everyone = [everyone[rank] for rank in distributed.get_process_group_ranks(group)]
    if len(widths := {tokens.shape[1] for tokens, *_ in everyone}) > 1:
        raise UserError(f"data: the ranks' rows have different lengths {sorted(widths)}; set data.packing: true.")
    return [TokenBatch(*(tensor.to(device) for tensor in tensors), lengths=lengths) for *tensors, lengths in everyone]


def broadcast(tensors: Iterable[Tensor], owner: int) -> None:
    """Overwrites tensors by those of one rank. Ranks meet before: NCCL would not notice that one of them is dead."""
    all_gather(None)
    for tensor in tensors:
        distributed.broadcast(tensor, owner)


def stacked(mine: Tensor, group: Any = None) -> Tensor:
    """The tensors of all ranks, or of those of a group, of equal shape, along dim 0 in the order of ranks."""
    if not is_distributed():
        return mine
    everyone = mine.new_empty(distributed.get_world_size(group) * len(mine), *mine.shape[1:])
    distributed.all_gather_into_tensor(everyone, mine.contiguous(), group=group)
    return everyone


def merged(mine: dict[K, V]) -> dict[K, V]:
    """The union of all ranks' entries."""
    if not is_distributed():
        return mine
    return {key: value for entries in _gathered(mine) for key, value in entries.items()}


def streamed(owners: Mapping[K, int], get: Callable[[K], V]) -> Iterator[tuple[K, V]]:
    """Yields (key, the owner's `get(key)`) on rank 0, one at a time. Other ranks must iterate too and get nothing."""
    rank = distributed.get_rank() if is_distributed() else 0
    group = _exchange() if is_distributed() else None
    for key, owner in owners.items():
        held = [get(key) if rank == owner else None]
        if rank == owner != 0:
            distributed.send_object_list(held, dst=0, group=group)
        if rank == 0 != owner:
            distributed.recv_object_list(held, src=owner, group=group)
        if rank == 0:
            yield key, held[0]  # type: ignore[misc]


def _gathered(mine: V) -> list[V]:
    everyone: list[V | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine, group=_exchange())
    for rank, value in enumerate(everyone):
        if isinstance(value, UserError):
            raise RankError(f"rank {rank}: {value}")
    return everyone  # type: ignore[return-value]


def _exchange() -> Any:
    """The gloo group of all ranks for objects, made when it is first asked for. Collective.

    NCCL would send pickles through the GPU's memory, and ends a run when one rank waits half an hour for another.
    """
    global _exchanges
    world = distributed.group.WORLD
    if _exchanges is None or _exchanges[0] is not world:
        _exchanges = world, distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return _exchanges[1]
