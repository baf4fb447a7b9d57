"""One rollout engine for several ranks of a trainer: a model that one device cannot hold is divided over theirs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import GEN_SUSPENDED, getgeneratorstate
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from lnlit.errors import UserError
from lnlit.interfaces import (
    EngineMemory,
    EngineSize,
    PolicyWeights,
    Rollout,
    RolloutEngine,
    RolloutRequest,
    RolloutSampling,
)
from lnlit.models.ranks import is_distributed
from lnlit.rollout.neighbours import Neighbours
from lnlit.rollout.wrapped import WrappedEngine

V = TypeVar("V")


def shared(engine: RolloutEngine) -> RolloutEngine:
    """The engine as each rank uses it: together with others, if they share one."""
    return SharedEngine(engine) if engine.ranks_per_engine > 1 and is_distributed() else engine


def place_among(rank: int, ranks: int, ranks_per_engine: int) -> int:
    """A rank's place where prompts are dealt out: first one rank of each engine, then the next one of each, so that few
    prompts keep all engines busy."""
    return rank % ranks_per_engine * (ranks // ranks_per_engine) + rank // ranks_per_engine


def indivisible(ranks_per_engine: int, ranks: int, ranks_per_node: int) -> str | None:
    """Why so many ranks cannot share engines; None if they can, or if there is only one."""
    if ranks == 1 or ranks_per_node % ranks_per_engine == 0:
        return None
    return (
        f"{ranks_per_engine} ranks of one node share an engine, and a node has {ranks_per_node}, which is no multiple"
    )


class SharedEngine(WrappedEngine):
    """An engine that `ranks_per_engine` consecutive ranks of one machine share. The first of them runs it, on the
    devices of all.

    `load_weights`, `generate`, `sleep` and `wake` are collective among these ranks, and the first `load_weights` is
    among all ranks of the run. A request's completion is what an engine of the rank's own would give. An error on one
    of the ranks is raised on each of them. If they call the engine from a thread, no other may call it meanwhile,
    except for `counts` and `close`.

    Args:
        engine: The engine, which has not been used yet.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        super().__init__(engine)
        self._ranks: Neighbours | None = None
        self._is_loaded = False

    def load_weights(self, weights: PolicyWeights) -> None:
        self._is_loaded = False
        if self._ranks is None:
            self._ranks = self._met()
        with self._ranks.call():
            if self._ranks.is_first:
                self._load(self._ranks, weights)
            else:
                _gather(_together(self._ranks, weights.tensors))
            self._ranks.exchange(None, _nothing)
        self._is_loaded = True

    def generate(self, requests: Sequence[RolloutRequest], sampling: RolloutSampling) -> list[Rollout]:
        if self._ranks is None or not self._is_loaded:
            name = type(self.engine).__name__
            raise UserError(f"{name} has no complete weights to generate with; load_weights comes first.")

        def work(everyone: list[Any]) -> list[list[Rollout]]:
            found = self.engine.generate([each for theirs in everyone for each in theirs], sampling)
            ends = accumulate(map(len, everyone), initial=0)
            return [found[first:end] for first, end in pairwise(ends)]

        with self._ranks.call():
            return self._ranks.exchange(list(requests), work)

    def sleep(self) -> None:
        """The engine sleeps before any of the ranks goes on, which may need the memory."""
        self._is_loaded = False
        self._after_all(self.engine.sleep)

    def wake(self) -> None:
        """The engine wakes after all ranks have come here and need its memory no more."""
        self._after_all(self.engine.wake)

    def counts(self) -> Mapping[str, int]:
        """The engine's on the rank that runs it; none have occurred on the others."""
        return self.engine.counts()

    def memory(self, size: EngineSize) -> EngineMemory | None:
        return self.engine.memory(size)

    def close(self) -> None:
        """Not collective: a rank that has failed closes alone. The others then fail at their next call."""
        self._is_loaded = False
        self.engine.close()
        if self._ranks is not None:
            self._ranks.close()
        self._ranks = None

    def _met(self) -> Neighbours:
        ranks = Neighbours(self.ranks_per_engine, self.engine.device_name())
        with ranks.call():
            if ranks.is_first:
                self.engine.share(ranks.told)
            ranks.exchange(None, _nothing)
        return ranks

    def _load(self, ranks: Neighbours, weights: PolicyWeights) -> None:
        tensors = _together(ranks, weights.tensors)
        try:
            self.engine.load_weights(replace(weights, tensors=tensors))
        except Exception:
            if getgeneratorstate(tensors) == GEN_SUSPENDED:  # the others have begun
                _gather(tensors)
            raise
        _gather(tensors)

    def _after_all(self, work: Callable[[], None]) -> None:
        """The first rank does it when all ranks have come here, and the others wait."""
        if self._ranks is None:  # nothing is loaded
            return

        def done(everyone: list[Any]) -> list[Any]:
            work()
            return _nothing(everyone)

        with self._ranks.call():
            self._ranks.exchange(None, done)


def _together(ranks: Neighbours, tensors: Iterable[V]) -> Generator[V, None, None]:
    """The same on all ranks, which begin when the engine wants the first: before, it may take minutes to start, which
    is long for a collective to wait."""
    ranks.exchange(None, _nothing)
    yield from tensors


def _gather(tensors: Iterable[Any]) -> None:
    """Takes part in gathering sharded tensors, which takes all ranks, also those that want none of them."""
    for _ in tensors:
        pass


def _nothing(everyone: list[Any]) -> list[None]:
    return [None] * len(everyone)
