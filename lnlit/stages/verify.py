"""`lnlit search verify`: measures whole models and compares them with the cost table's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lnlit import registry
from lnlit.checkpoint.folder import LnlitFolder, read_provenance
from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.errors import UserError
from lnlit.files import check_output, expanded, write_json
from lnlit.interfaces import Meter
from lnlit.models.device import torch_device
from lnlit.progress import say
from lnlit.search.costs import CostTable, tokens_per_s
from lnlit.search.hardware import Hardware
from lnlit.search.measure import LatencyLog, best_of_rounds, once
from lnlit.search.targets import cost_at
from lnlit.specs import ModelSpec
from lnlit.stages.measure import in_turns


def verify(
    costs: str,
    models: Sequence[str],
    out: str,
    engine: str | None = None,
    rounds: int = 5,
    samples: int = 2,
    allow_other_hardware: bool = False,
) -> Path:
    """Measure whole models in turns, and write their times beside the table's predictions.

    The first model is what the others are compared with, usually the parent. One with parts that are not in the table,
    as fused FFNs are, is measured without a prediction. Interrupted, it goes on where it stopped.

    Args:
        costs: The cost table that `lnlit search measure` wrote.
        models: Model folders; their weights are not read.
        out: The JSON file to write, which `lnlit search report` takes as `measured`.
        engine: Registered meter; the table's own when not given.
        rounds: How often all models are timed, in turns.
        samples: Times taken of each model per round; the best counts.
        allow_other_hardware: Accept a cost table that was measured on another machine.
    """
    if not models or rounds < 1 or samples < 1:
        raise UserError(f"verify: needs a model, rounds and samples, got {list(models)}, {rounds} and {samples}.")
    file = check_output(expanded(out), inputs=[costs], mark=b'"costs_sha256"')
    table = CostTable.read(expanded(costs))
    table.check_hardware(allow_other_hardware)
    for workload in table.workloads:
        table.check_timed(workload)
    specs = {name: read_spec(name) for name in once(models, "verify.models")}
    predicted = {name: _predicted(table, name, spec) for name, spec in specs.items()}
    meter: Meter = registry.build("meter", engine or table.engine)
    machine = Hardware.here(torch_device())
    settings = {"costs": table.to_json(), "engine": engine, "samples": samples, "hardware": machine.to_json()}
    architectures = {name: spec.to_json() for name, spec in specs.items()}
    with LatencyLog.beside(file, {**settings, "models": architectures}) as log:
        measured = in_turns(log, specs, replace(table, rounds=rounds, samples=samples), meter, "verify")
        times = {name: np.median(best_of_rounds(each), axis=0) for name, each in measured.items()}
        found = [_compared(table, name, predicted[name], times[name]) for name in specs]
        write_json(file, {**_made_by(table, engine or table.engine), "models": found})
        log.delete()
    for line in _summary(table, found):
        say(line)
    return file


def _predicted(table: CostTable, name: str, spec: ModelSpec) -> list[dict[str, float]]:
    """The costs of a model for each workload; none, which is said, if the table lacks a part of it."""
    if missing := table.missing(spec):
        say(f"verify: {name}: no prediction, because the cost table has no {'; '.join(missing)}")
        return []
    return [table.predict(spec, workload) for workload in table.workloads]


def _made_by(table: CostTable, engine: str) -> dict[str, Any]:
    """What these measurements are of, for `lnlit.search.problem.corrected`."""
    workloads = [asdict(workload) for workload in table.workloads]
    return {"engine": engine, "dtype": table.dtype, "workloads": workloads, "costs_sha256": table.sha256}


def _library_of(model: str) -> dict[str, str]:
    """The digest of the library that a child was made from, as the child records it."""
    path = resolve(model)
    sha256 = read_provenance(path).get("library_sha256") if LnlitFolder().recognises(path) else None
    return {} if sha256 is None else {"library_sha256": sha256}


def _compared(table: CostTable, name: str, predicted: Sequence[dict[str, float]], times: np.ndarray) -> dict[str, Any]:
    """One model's predicted and measured costs. `times` are seconds by [workload, (prefill, decode)]. Times of 0, such
    as the decoding of a single new token, are left out. `predicted` is empty for a model that the table cannot
    predict."""
    sides: dict[str, dict[str, float]] = {"predicted": {}, "measured": {}}
    expected = [(costs["prefill_s"], costs["decode_s"]) for costs in predicted]
    for side, found in (("predicted", expected), ("measured", times.tolist())):
        for workload, (prefill, decode) in zip(table.workloads, found, strict=False):
            label = str(workload) if len(table.workloads) > 1 else ""
            values = {"prefill_s": prefill, "decode_s": decode, "latency_s": prefill + decode}
            values["throughput"] = tokens_per_s(workload, prefill + decode)
            sides[side] |= {cost_at(cost, label): value for cost, value in values.items()}
    for cost in [cost for cost, value in sides["measured"].items() if value == 0]:
        sides["predicted"].pop(cost, None)
        del sides["measured"][cost]
    return {"name": name, **_library_of(name), **sides}


def _summary(table: CostTable, found: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for cost in (cost for cost in found[0]["measured"] if cost.startswith("latency_s")):
        first = found[0]["measured"][cost]
        for model in found:
            measured, predicted = model["measured"][cost], model["predicted"].get(cost)
            error = "" if predicted is None else f"predicted {predicted / measured - 1:+.1%}; "
            speed = f"{error}{first / measured:.2f}x as fast"
            lines.append(f"verify: {model['name']}: {cost} {measured:.4g}, {speed}")
    return lines
