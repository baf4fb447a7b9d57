"""How the time of one variant is found: in place, as a difference of whole models.

A variant alone, in a loop, runs from warm caches and launches faster than it ever does in a model. So the parent's
block is stacked `layers` deep, and in all layers but the first (engines want one with a KV cache) one slot is
exchanged: for the variant in one model, for nothing in another. The difference over the number of exchanged slots is
the variant's time. What the parent's parts do not explain of the parent's time is the base.

The two slots of a block are not independent: on a CPU each evicts the other from the cache, and a full block can take
10 to 15 % longer than its halves taken alone. So the slot beside the exchanged one holds the parent's part in every
second layer and nothing in the others. This shares the interaction out equally, as a Shapley value does, so that both
full and thinned blocks are predicted well.

Machines drift and are shared. So all models are timed in rounds, in a new order each round; only times of the same
round are compared, a round's time of a model is the best of its samples, as interruptions only add, and the result is
the median over rounds. Each round builds its models anew, as where the weights lie in memory matters too.

What was measured is in a journal until the table is written, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlit.errors import UserError
from lnlit.interfaces import Latency, Workload
from lnlit.journal import Journal
from lnlit.models.parts import attention_class
from lnlit.progress import say
from lnlit.schema import Whole, read
from lnlit.search.costs import Timing
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec

PARENT = "parent"
MAX_LAYERS = 32
#: By how much the slowest round of a model may exceed its fastest before that is said.
_UNSTEADY = 0.1
#: model name -> its latencies, [round][workload]
Times = Mapping[str, Sequence[Sequence[Latency]]]


@dataclass(frozen=True)
class Plan:
    """The models to time for one parent. `attention` and `ffn` hold the parent's parts and `noop` too."""

    spec: ModelSpec
    reference: BlockSpec
    attention: tuple[PartSpec, ...]
    ffn: tuple[PartSpec, ...]
    layers: int

    @classmethod
    def of(
        cls, spec: ModelSpec, attention: Iterable[PartSpec], ffn: Iterable[PartSpec], layers: int | None = None
    ) -> Plan:
        """A plan for these variants of `spec`, in models of `layers` layers, two or more (by default the parent's
        number, 32 at most)."""
        layers = min(max(len(spec.layers), 2), MAX_LAYERS) if layers is None else layers
        if layers < 2:
            raise UserError(f"measure: layers must be 2 or more, as costs are differences of models; got {layers}.")
        reference = _reference_block(spec)
        own = {"attention": [b.attention for b in spec.layers], "ffn": [b.ffn for b in spec.layers]}
        return cls(
            spec,
            reference,
            tuple(dict.fromkeys([*own["attention"], *attention, NOOP])),
            tuple(dict.fromkeys([*own["ffn"], *ffn, NOOP])),
            layers,
        )

    def models(self) -> dict[str, ModelSpec]:
        """Name -> architecture of every model to time: the parent's block alone, and one for each part."""
        models = {PARENT: self._stack(self.reference, self.reference)}
        for slot, other, parts in (("attention", "ffn", self.attention), ("ffn", "attention", self.ffn)):
            for part in parts:
                block = self.reference.replace(**{slot: part})
                models[f"{slot} {part}"] = self._stack(block, block.replace(**{other: NOOP}))
        return models

    def _stack(self, odd: BlockSpec, even: BlockSpec) -> ModelSpec:
        """The reference block, then `odd` and `even` in turns."""
        others = (odd if index % 2 else even for index in range(1, self.layers))
        return self.spec.replace(layers=(self.reference, *others))


def schedule(models: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, model): every model once a round, in an order of its own each round, the same in every process."""
    names = list(models)
    for index in range(rounds):
        yield from ((index, name) for name in random.Random(index).sample(names, len(names)))


@dataclass(frozen=True)
class Estimate:
    """Seconds of a model's base and of every part, and what a reader should know about them."""

    base: Timing
    attention: Mapping[PartSpec, Timing]
    ffn: Mapping[PartSpec, Timing]
    notes: tuple[str, ...]


def estimate(plan: Plan, times: Times) -> Estimate:
    """All parts' times from the times of all models of `plan`. One below zero becomes zero, with a note."""
    seconds = {name: best_of_rounds(rounds) for name, rounds in times.items()}
    notes = list(_unsteady(seconds))

    def exchanged(slot: str, part: PartSpec) -> NDArray:
        return (seconds[f"{slot} {part}"] - seconds[f"{slot} {NOOP}"]) / (plan.layers - 1)

    def timing(label: str, rounds: NDArray, middle: NDArray) -> Timing:
        if (middle < 0).any():
            notes.append(f"{label}: estimated below zero ({middle.min():.2g} s), set to 0; more rounds may settle it.")
        low, high = np.percentile(rounds, [25, 75], axis=0)
        columns = (values[:, kind].tolist() for values in (np.maximum(middle, 0.0), high - low) for kind in (0, 1))
        return Timing(*map(tuple, columns))

    parts: dict[str, dict[PartSpec, Timing]] = {}
    base_rounds, base = seconds[PARENT].copy(), np.median(seconds[PARENT], axis=0)
    for slot, variants in (("attention", plan.attention), ("ffn", plan.ffn)):
        rounds = {part: exchanged(slot, part) for part in variants}
        parts[slot] = {part: timing(f"{slot} {part}", r, np.median(r, axis=0)) for part, r in rounds.items()}
        own = rounds[getattr(plan.reference, slot)]
        base_rounds, base = base_rounds - plan.layers * own, base - plan.layers * np.median(own, axis=0)
    return Estimate(timing("base", base_rounds, base), parts["attention"], parts["ffn"], tuple(notes))


def _unsteady(seconds: Mapping[str, NDArray]) -> Iterator[str]:
    """A note if the same models took different times in different rounds."""
    totals = [rounds.sum(axis=2) for rounds in seconds.values()]  # [round, workload]
    excess = float(np.median([total.max(axis=0) / total.min(axis=0) - 1 for total in totals]))
    if excess > _UNSTEADY:
        yield (
            f"a model's slowest round took {excess:.0%} longer than its fastest (median over models), so the machine "
            "was busy: measure when nothing else runs, or in more rounds."
        )


def best_of_rounds(rounds: Sequence[Sequence[Latency]]) -> NDArray:
    """[round, workload, (prefill, decode)] seconds: the best sample of each round."""
    return np.array([[[min(one.prefill_s), min(one.decode_s)] for one in latencies] for latencies in rounds])


def checked_workloads(workloads: Sequence[Workload], context_length: int) -> tuple[Workload, ...]:
    """Each of them once (see `once`). Raises `UserError` for none, for sizes below 1 and for what the context cannot
    hold."""
    if not workloads:
        raise UserError(
            "workloads: there are none; name at least one, as {batch_size: 8, prompt_tokens: 256, new_tokens: 32}."
        )
    for index, workload in enumerate(workloads):
        for name, value in asdict(workload).items():
            if value < 1:
                raise UserError(f"workloads[{index}].{name}: expected a positive number, got {value}.")
        if (needed := workload.prompt_tokens + workload.new_tokens) > context_length:
            raise UserError(
                f"workloads[{index}]: {workload.prompt_tokens} prompt and {workload.new_tokens} new tokens are "
                f"{needed}; the model's context is {context_length}."
            )
    return once(workloads, "workloads")


def once(given: Sequence[Any], where: str) -> tuple[Any, ...]:
    """Each of the given things once, in order. Prints a line for one that is there several times."""
    for thing, count in Counter(given).items():
        if count > 1:
            say(f"{where}: {thing} is there {count} times; taken once")
    return tuple(dict.fromkeys(given))


def _reference_block(spec: ModelSpec) -> BlockSpec:
    """The parent's most frequent block with a KV cache and an FFN."""
    full = Counter(b for b in spec.layers if b.ffn != NOOP and _caches(b.attention))
    if not full:
        raise UserError("measure: no layer of the parent has both attention and an FFN, so there is nothing to vary.")
    return full.most_common(1)[0][0]


def _caches(part: PartSpec) -> bool:
    return attention_class(part).kv_cache_shape(part.args) is not None


# what has been measured so far

#: (round, model).
Turn = tuple[int, str]
_THEN = "Delete this line to measure that model again, or the file to start anew."


@dataclass(frozen=True)
class _Line:
    round: Whole
    model: str
    latencies: tuple[Latency, ...]


class LatencyLog:
    """A journal with one line per round and model.

    Two measurements at once would time each other, so it belongs to one process at a time. Raises `UserError` for a
    line that is no measurement, and as `Journal` does.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._latencies: dict[Turn, list[Latency]] = {}
        try:
            for number, entry in journal.numbered():
                found = read(_Line, entry, f"{journal.file}:{number}:", then=_THEN)
                if not all(one.prefill_s and one.decode_s for one in found.latencies):
                    raise UserError(f"{journal.file}:{number}: latencies: a workload without times. {_THEN}")
                self._latencies[found.round, found.model] = list(found.latencies)
        except BaseException:
            journal.close()
            raise

    @classmethod
    def beside(cls, out: Path, settings: Mapping[str, Any]) -> LatencyLog:
        """Opens the log at `<out>.partial`, which is created if it does not exist. `settings` are its header."""
        return cls(Journal.beside(out, settings, "measurements"))

    def __enter__(self) -> LatencyLog:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._latencies:  # a meter that cannot run leaves nothing that another one would have to agree with
            self.delete()
        self.journal.close()

    def __contains__(self, turn: Turn) -> bool:
        """True if this (round, model) has been measured."""
        return turn in self._latencies

    def append(self, turn: Turn, latencies: Iterable[Latency]) -> None:
        latencies = list(latencies)
        measured = [asdict(one) for one in latencies]
        self.journal.append({"round": turn[0], "model": turn[1], "latencies": measured})
        self._latencies[turn] = latencies

    def times(self, models: Iterable[str], rounds: int) -> Times:
        return {name: [self._latencies[index, name] for index in range(rounds)] for name in models}

    def delete(self) -> None:
        """Deletes the file. Called when the cost table that it was kept for has been written."""
        self.journal.file.unlink()


def in_words(turn: Turn) -> str:
    return f"round {turn[0] + 1}, {turn[1]}"
