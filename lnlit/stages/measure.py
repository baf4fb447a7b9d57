"""`lnlit search measure`: the costs of every variant of a block library on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lnlit import registry
from lnlit.checkpoint.folder import hf_config
from lnlit.errors import UserError
from lnlit.files import check_output, expanded, write_json
from lnlit.interfaces import Meter, Workload
from lnlit.models.device import torch_device
from lnlit.progress import say, track
from lnlit.search.costs import Cost, CostTable, Timing, base_cost, dtype_bytes, part_cost
from lnlit.search.hardware import Hardware
from lnlit.search.library import Library
from lnlit.search.measure import LatencyLog, Plan, Times, checked_workloads, estimate, in_words, schedule
from lnlit.specs import ModelSpec, PartSpec


def measure(
    library: str,
    workloads: Sequence[Workload],
    out: str,
    dtype: Literal["bfloat16", "float32", "float8"] = "bfloat16",
    engine: str = "native",
    rounds: int = 5,
    samples: int = 2,
    layers: int | None = None,
    timing: bool = True,
) -> Path:
    """Write a cost table: parameters, bytes and measured seconds of every variant in a library.

    Interrupted, it goes on where it stopped: finished measurements are kept in `<out>.partial` until all are there.

    Args:
        library: Block library whose variants are measured.
        workloads: What is timed: batches of so many requests, each with so many prompt and new tokens.
        out: The file to write, usually costs.json.
        dtype: The dtype of weights and KV cache. float8 (one byte each) is timed by vllm on a GPU; elsewhere it counts
            bytes only and needs timing: false.
        engine: Registered meter that runs the models: native on a CPU, or vllm with the plugin lnlit-vllm.
        rounds: How often all models are timed, in turns. More rounds settle a busy machine.
        samples: Times taken of each model per round; the best counts.
        layers: Depth of the timed models. The parent's own, 32 at most, when not given.
        timing: Measure seconds. Otherwise the table holds parameters and bytes only.
    """
    file = check_output(expanded(out), mark=b'"hardware"')
    opened = Library.open(library)
    attention = dict.fromkeys(variant.part for layer in opened.layers for variant in layer.attention.values())
    ffn = dict.fromkeys(variant.part for layer in opened.layers for variant in layer.ffn.values())
    plan = Plan.of(opened.spec, attention, ffn, layers)
    wanted = checked_workloads(workloads, opened.spec.context_length)
    if not timing:
        return replace(untimed(plan, wanted, dtype), library=opened.identity).write(file)
    options = {"dtype": dtype, "engine": engine, "rounds": rounds, "samples": samples, "made_for": opened.identity}
    return measure_plan(plan, wanted, file, **options)


def measure_plan(
    plan: Plan,
    workloads: Sequence[Workload],
    out: Path,
    *,
    dtype: str = "bfloat16",
    engine: str = "native",
    rounds: int = 5,
    samples: int = 2,
    made_for: Mapping[str, str] | None = None,
) -> Path:
    """Like `measure`, for any list of variants: a plan such as `Plan.of(spec, attention_parts, ffn_parts)`, without a
    library. `made_for` is the identity of the library that they come from."""
    if rounds < 1 or samples < 1:
        raise UserError(f"measure: rounds and samples must be 1 or more, got {rounds} and {samples}.")
    meter: Meter = registry.build("meter", engine)
    bare = untimed(plan, workloads, dtype)
    if dtype not in meter.dtypes:
        raise UserError(
            f"measure: the meter {engine!r} runs {' and '.join(meter.dtypes)}, not {dtype}. Without timing no meter is "
            "needed: set timing to false."
        )
    table = replace(bare, engine=engine, rounds=rounds, samples=samples, library=made_for or {})
    models = plan.models()
    with LatencyLog.beside(out, _settings(table, models)) as log:
        found = timed(table, plan, in_turns(log, models, table, meter, "measure"))
        found.write(out)
        log.delete()
    for note in found.notes:
        say(f"measure: {note}")
    return out


def in_turns(log: LatencyLog, models: Mapping[str, ModelSpec], like: CostTable, meter: Meter, what: str) -> Times:
    """The times of all models, in rounds as `like` has them; those that are in `log` are not measured again."""
    missing = [turn for turn in schedule(models, like.rounds) if turn not in log]
    for turn in track(missing, what, "model", label=in_words):
        spec = models[turn[1]]
        with model_folder(spec, like.dtype) as folder:
            found = meter.measure(spec, folder, like.workloads, dtype=like.dtype, samples=like.samples)
        log.append(turn, found)
    return log.times(models, like.rounds)


def untimed(plan: Plan, workloads: Sequence[Workload], dtype: str) -> CostTable:
    """The parameters and bytes of the variants of `plan`."""
    dtype_bytes(dtype)  # refuses unknown ones
    spec = plan.spec
    return CostTable(
        engine="none",
        dtype=dtype,
        hardware=Hardware.here(torch_device()),
        rounds=0,
        samples=0,
        layers=plan.layers,
        workloads=tuple(workloads),
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        tie_embeddings=spec.tie_embeddings,
        notes=(),
        base_cost=base_cost(spec, dtype),
        attention={part: part_cost(spec, "attention", part, dtype) for part in plan.attention},
        ffn={part: part_cost(spec, "ffn", part, dtype) for part in plan.ffn},
    )


@contextmanager
def model_folder(spec: ModelSpec, dtype: str) -> Iterator[Path]:
    """A temporary model folder without weights, for a meter."""
    with tempfile.TemporaryDirectory() as name:
        stored = "bfloat16" if dtype == "float8" else dtype  # weights are quantised when they are loaded
        write_json(Path(name) / "config.json", {**hf_config(spec), "dtype": stored})
        yield Path(name)


def _settings(table: CostTable, models: Mapping[str, ModelSpec]) -> dict[str, Any]:
    """The settings that two measurements must share for their times to be comparable. Rounds may be added at any
    time."""
    kept = ("engine", "dtype", "hardware", "samples", "workloads")
    settings = {key: value for key, value in table.to_json().items() if key in kept}
    return {**settings, "models": {name: spec.to_json() for name, spec in models.items()}}


def timed(table: CostTable, plan: Plan, times: Times) -> CostTable:
    found = estimate(plan, times)

    def with_times(costs: Mapping[PartSpec, Cost], timings: Mapping[PartSpec, Timing]) -> dict[PartSpec, Cost]:
        return {part: replace(cost, timing=timings[part]) for part, cost in costs.items()}

    return replace(
        table,
        base_cost=replace(table.base_cost, timing=found.base),
        attention=with_times(table.attention, found.attention),
        ffn=with_times(table.ffn, found.ffn),
        notes=found.notes,
    )
