"""The costs of every variant: parameters, bytes, and seconds measured on one machine. The table on disk is
`costs.json`.

A part has the same cost in every layer, so a model's cost is that of its base (embedding, final norm, head, loop) plus
the sum over its parts. Memory follows Puzzle (arXiv 2411.19146), section 4.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import reduce
from pathlib import Path
from typing import Any

from lnlit.errors import UserError, did_you_mean
from lnlit.files import check_format, read_json, write_json
from lnlit.interfaces import Workload
from lnlit.models.build import build_decoder, check_spec, parameter_count
from lnlit.models.parts import kv_elements
from lnlit.schema import NotNegative, Whole, read
from lnlit.search.choice import Half, alone
from lnlit.search.hardware import Hardware
from lnlit.specs import BlockSpec, ModelSpec, PartSpec

FORMAT = 1
MIB = 2**20
#: Bytes of a weight, and of a number in the KV cache.
DTYPES = {"float32": 4, "bfloat16": 2, "float8": 1}
_TIMES = ("prefill_s", "decode_s", "prefill_spread_s", "decode_spread_s")
_WHAT, _THEN = "a cost table of `lnlit search measure`", "Measure again."


@dataclass(frozen=True)
class Timing:
    """Seconds for the whole batch, one entry per workload: the median over rounds and, as spread, its interquartile
    range over rounds."""

    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    prefill_spread_s: tuple[float, ...]
    decode_spread_s: tuple[float, ...]


@dataclass(frozen=True)
class Cost:
    """The cost of one part with its norm, or of a model's base. `timing` is None in a table without times."""

    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    timing: Timing | None = None


@dataclass(frozen=True, kw_only=True)
class _About:
    """How a table was measured, and what of a model like the parent must be the same for it to hold."""

    engine: str
    dtype: str
    hardware: Hardware
    rounds: Whole
    samples: Whole
    layers: Whole
    workloads: tuple[Workload, ...]
    hidden_size: Whole
    vocab_size: Whole
    tie_embeddings: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CostTable(_About):
    """Costs of the variants of one parent, in one dtype, with one engine, on one machine.

    `rounds` x `samples` times were taken of every model; `layers` is the depth of the models that were timed. `notes`
    says what a reader should know about the figures, such as estimates below zero that were set to zero. `library` has
    "folder" and "sha256" of the block library whose parts these are, where there was one.
    """

    base_cost: Cost
    attention: Mapping[PartSpec, Cost]
    ffn: Mapping[PartSpec, Cost]
    library: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> CostTable:
        """Reads a table from `costs.json`. Raises `UserError` naming a missing, negative or not finite entry."""
        file = Path(path)
        return _read_table(read_json(file, _WHAT), str(file))

    def write(self, path: str | Path) -> Path:
        """Writes `costs.json` atomically."""
        write_json(Path(path), self.to_json())
        return Path(path)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **{each.name: getattr(self, each.name) for each in fields(_About)},
            "hardware": self.hardware.to_json(),
            "workloads": [asdict(workload) for workload in self.workloads],
            "notes": list(self.notes),
            **({"library": dict(self.library)} if self.library else {}),
            "base": _cost_json(self.base_cost),
            "attention": {str(part): {"part": asdict(part), **_cost_json(c)} for part, c in self.attention.items()},
            "ffn": {str(part): {"part": asdict(part), **_cost_json(c)} for part, c in self.ffn.items()},
        }

    @property
    def sha256(self) -> str:
        """A digest of the whole table."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def check_hardware(self, allow_other: bool = False) -> None:
        """Raises `UserError` when the times were measured elsewhere, unless that is allowed or there are no times."""
        if allow_other or self.base_cost.timing is None:
            return
        here = Hardware.here("cpu" if self.hardware.device == "cpu" else "cuda")
        if self.hardware.fingerprint != here.fingerprint:
            raise UserError(
                f"the cost table was measured on other hardware ({'; '.join(self.hardware.differences(here))}). "
                "Measure again here, or set allow_other_hardware if you choose for that machine."
            )

    def check_timed(self, workload: Workload) -> None:
        """Raises `UserError` when the table has no times of `workload`."""
        if self.base_cost.timing is None:
            raise UserError("the cost table has no times (it was made without timing). Measure with timing.")
        self.check_measured(workload)

    def check_measured(self, workload: Workload) -> None:
        """Raises `UserError` when the table is not of `workload`."""
        if workload not in self.workloads:
            known = ", ".join(map(str, self.workloads))
            raise UserError(
                f"the cost table has no {workload} (requests x prompt + new tokens). It has: {known}. Choose of these, "
                "or measure it too."
            )

    def base(self, workload: Workload) -> dict[str, float]:
        """The costs of everything outside blocks: embedding, final norm, head, the engine's loop. Keys as in
        `block`."""
        return self._costs(self.base_cost, workload, 0, False)

    def block(
        self, block: BlockSpec, workload: Workload, *, prefill_queue: int = 0, prefill_query: bool = False
    ) -> dict[str, float]:
        """The costs of one block: parameters, kv_bytes_per_token, weight_mib, kv_mib, memory_mib and, for a workload
        that was timed, prefill_s, decode_s, latency_s. The memory options are explained at `subblock_memory_mib`.

        Raises `UserError` for a part that is not in the table.
        """
        slots = (("attention", self.attention, block.attention), ("ffn", self.ffn, block.ffn))
        costs = (_lookup(slot, table, part) for slot, table, part in slots)
        return add_costs(self._costs(cost, workload, prefill_queue, prefill_query) for cost in costs)

    def missing(self, spec: ModelSpec) -> list[str]:
        """The parts of a model that are not in the table, such as a fused FFN."""
        slots = (("attention", self.attention), ("ffn", self.ffn))
        parts = ((slot, getattr(block, slot), table) for block in spec.layers for slot, table in slots)
        return list(dict.fromkeys(f"{slot} {part}" for slot, part, table in parts if part not in table))

    def predict(
        self, spec: ModelSpec, workload: Workload, *, prefill_queue: int = 0, prefill_query: bool = False
    ) -> dict[str, float]:
        """The costs of a whole model: its base and all its blocks. Keys as in `block`."""
        for key in ("hidden_size", "vocab_size", "tie_embeddings"):
            if getattr(spec, key) != getattr(self, key):
                raise UserError(
                    f"the cost table is of a model with {key} {getattr(self, key)}, this one has "
                    f"{getattr(spec, key)}. Measure the parent of this model."
                )
        options = {"prefill_queue": prefill_queue, "prefill_query": prefill_query}
        return add_costs([self.base(workload), *(self.block(b, workload, **options) for b in spec.layers)])

    def _costs(self, cost: Cost, workload: Workload, prefill_queue: int, prefill_query: bool) -> dict[str, float]:
        query = self.hidden_size * dtype_bytes(self.dtype) if prefill_query and cost.kv_bytes_per_token else 0
        memory = subblock_memory_mib(
            cost.weight_bytes,
            cost.kv_bytes_per_token,
            workload,
            prefill_queue=prefill_queue,
            query_bytes_per_token=query,
        )
        weight_mib = cost.weight_bytes / MIB
        costs = {
            "parameters": cost.parameters,
            "kv_bytes_per_token": cost.kv_bytes_per_token,
            "weight_mib": weight_mib,
            "kv_mib": memory - weight_mib,
            "memory_mib": memory,
        }
        if cost.timing is not None and workload in self.workloads:
            index = self.workloads.index(workload)
            prefill, decode = cost.timing.prefill_s[index], cost.timing.decode_s[index]
            costs |= {"prefill_s": prefill, "decode_s": decode, "latency_s": prefill + decode}
        return costs


def subblock_memory_mib(
    weight_bytes: int,
    kv_bytes_per_token: int,
    workload: Workload,
    *,
    prefill_queue: int = 0,
    query_bytes_per_token: int = 0,
) -> float:
    """MiB of one sub-block: its weights, and for `prompt_tokens + new_tokens` tokens the KV cache of the batch and of
    `prefill_queue` requests waiting beside it, plus one request's queries where the engine sets room aside for them.
    """
    tokens = workload.prompt_tokens + workload.new_tokens
    cache_bytes = tokens * (workload.batch_size + prefill_queue) * kv_bytes_per_token
    return (cache_bytes + tokens * query_bytes_per_token + weight_bytes) / MIB


#: Tokens of a request that a throughput counts: prompt and new tokens as in Puzzle, or new tokens alone.
THROUGHPUTS: dict[str, Callable[[Workload], int]] = {
    "throughput": lambda workload: workload.prompt_tokens + workload.new_tokens,
    "output_throughput": lambda workload: workload.new_tokens,
}


def tokens_per_s(workload: Workload, latency_s: float, throughput: str = "throughput") -> float:
    """One of the `THROUGHPUTS` of a batch. Its inverse is the latency for so many tokens per second."""
    return workload.batch_size * THROUGHPUTS[throughput](workload) / latency_s


def add_costs(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Adds costs key by key. A key that one of them lacks (times that were not measured) is left out."""
    return reduce(lambda a, b: {key: a[key] + b[key] for key in a if key in b}, map(dict, costs))


def dtype_bytes(dtype: str) -> int:
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}.{did_you_mean(dtype, DTYPES)} Allowed: {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def part_cost(spec: ModelSpec, slot: Half, part: PartSpec, dtype: str) -> Cost:
    """The cost of `part` with its norm in a model like `spec`, without times."""
    single = spec.replace(layers=(alone(slot, part),))
    check_spec(single)
    parameters = parameter_count(build_decoder(single).layers)
    size = dtype_bytes(dtype)
    return Cost(parameters, parameters * size, kv_elements(single) * size)


def base_cost(spec: ModelSpec, dtype: str) -> Cost:
    """The cost of embedding, final norm and head, without times. A tied head counts once."""
    parameters = parameter_count(build_decoder(spec.replace(layers=())))
    return Cost(parameters, parameters * dtype_bytes(dtype), 0)


def _lookup(slot: str, table: Mapping[PartSpec, Cost], part: PartSpec) -> Cost:
    if part not in table:
        known = "; ".join(map(str, table))
        raise UserError(f"the cost table has no {slot} {part}. It has: {known}. Measure it too.")
    return table[part]


# JSON


def _cost_json(cost: Cost) -> dict[str, Any]:
    values = asdict(cost)
    timing = values.pop("timing") or {}
    return values | {key: list(seconds) for key, seconds in timing.items()}


@dataclass(frozen=True, kw_only=True)
class _Entry:
    parameters: Whole
    weight_bytes: Whole
    kv_bytes_per_token: Whole
    prefill_s: Any = None
    decode_s: Any = None
    prefill_spread_s: Any = None
    decode_spread_s: Any = None

    def cost(self, workloads: int | None, place: str) -> Cost:
        """The entry as a cost, with times if `workloads`, their number, is given."""
        counts = self.parameters, self.weight_bytes, self.kv_bytes_per_token
        if workloads is None:
            return Cost(*counts)
        seconds = tuple[(NotNegative,) * workloads]
        times = {key: read(seconds, getattr(self, key), f"{place}.{key}", then=_THEN) for key in _TIMES}
        return Cost(*counts, Timing(**times))


@dataclass(frozen=True, kw_only=True)
class _PartEntry(_Entry):
    part: PartSpec


@dataclass(frozen=True)
class _Library:
    folder: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _File(_About):
    library: _Library | None = None
    base: _Entry
    attention: Mapping[str, _PartEntry]
    ffn: Mapping[str, _PartEntry]


def _read_table(data: dict[str, Any], where: str) -> CostTable:
    check_format(data, FORMAT, where, _WHAT)
    if isinstance(machine := data.get("hardware"), dict):  # whose fingerprint is there for people
        data = {**data, "hardware": {key: value for key, value in machine.items() if key != "fingerprint"}}
    file: _File = read(_File, data, f"{where}:", then=_THEN, others=True)
    timed = None if file.base.prefill_s is None else len(file.workloads)

    def costs(slot: str, entries: Mapping[str, _PartEntry]) -> dict[PartSpec, Cost]:
        return {entry.part: entry.cost(timed, f"{where}: {slot}[{key!r}]") for key, entry in entries.items()}

    return CostTable(
        **{each.name: getattr(file, each.name) for each in fields(_About)},
        library=asdict(file.library) if file.library else {},
        base_cost=file.base.cost(timed, f"{where}: base"),
        attention=costs("attention", file.attention),
        ffn=costs("ffn", file.ffn),
    )
