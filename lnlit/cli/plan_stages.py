"""What the stages of search, sampling and evaluation ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from lnlit.cli.blame import built
from lnlit.cli.parser import rows_may_come
from lnlit.cli.pipeline import Stage
from lnlit.cli.plan_known import Known
from lnlit.cli.stage_commands import of_stage as command_of
from lnlit.data.text import TextSample
from lnlit.interfaces import RolloutEngine
from lnlit.models.parts import kv_elements
from lnlit.planning.blocks import fitting, layer_by_layer, library_bytes, tried
from lnlit.planning.gpus import CPU, Gpu
from lnlit.planning.plan import EXPORT, Plan, served
from lnlit.planning.sizes import sized
from lnlit.rollout.native import NativeEngine
from lnlit.search.costs import DTYPES
from lnlit.search.library import Library


def of_stage(stage: Stage, options: list[str], gpu: Gpu, known: Known) -> Plan:
    """The plan of a stage that is a function. Stages without a planner here need no GPU's memory worth a plan."""
    kind = str(stage.kind)
    _, parser, config = command_of(kind).parsed(kind, options)
    rows_may_come(parser)
    given = built(parser, config)
    planner = _PLANNERS.get(kind)
    found = Plan(stage.name, gpu) if planner is None else planner(stage.name, given, gpu, known)
    models = _models(given)
    if models:
        known.writes(stage.outs, models[0])
    return found


def _models(given: Mapping[str, Any]) -> list[str]:
    """The models that a stage names, the one that its result is made of first."""
    named = [given.get("model"), *(given.get("models") or []), given.get("against")]
    return [str(path) for path in named if path]


def _library(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    spec, candidates, data = known.spec(given["model"]), given["candidates"], given["data"]
    known.candidates[given["out"]] = candidates
    known.parents[given["out"]] = given["model"]
    batch, dtype = max(given["batch_tokens"], data.length), getattr(torch, given["dtype"])
    tokens, layers = data.rows * data.length, tried(spec, candidates)
    outputs, sums = fitting(spec, layers, tokens, dtype)
    parts = {**layer_by_layer(spec, tokens, batch, dtype), "a half's outputs": outputs}
    plan = Plan(name, gpu, phases={"run": parts}, disk={"library": library_bytes(spec, layers)})
    if plan.peak_bytes + sums > plan.room and gpu.name != CPU:
        return replace(plan, host={"least squares": sums})
    return replace(plan, phases={"run": {**parts, "least squares": sums}})


def _score(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    data, tokens, batch, notes = given["data"], given["batch_tokens"], given["batch_tokens"], ()
    if isinstance(data, TextSample):
        tokens, batch = data.rows * data.length, max(batch, data.length)
    else:
        notes = ("of the questions, whose lengths are not known, one batch is counted",)
    parts = layer_by_layer(known.spec(given["model"]), tokens, batch, getattr(torch, given["dtype"]), scored=True)
    return Plan(name, gpu, phases={"run": parts}, notes=notes)


def _refine(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    library, data = given["library"], given["data"]
    spec = known.spec(known.parents.get(library) or Library.open(library).model)
    tokens, batch = data.rows * data.length, max(given["batch_tokens"], data.length)
    parts = layer_by_layer(spec, tokens, batch, getattr(torch, given["dtype"]), scored=True)
    return Plan(name, gpu, phases={"run": parts})


def _measure(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    """The models that are timed: so many layers of the parent, with the largest workload's cache."""
    library = given["library"]
    parent = known.parents.get(library) or Library.open(library).model
    if not given["timing"]:
        return Plan(name, gpu)
    spec, size = known.spec(parent), DTYPES[given["dtype"]]
    model = sized(spec.replace(layers=spec.layers[: given["layers"] or 32]))  # measure's own default
    tokens = max(each.batch_size * (each.prompt_tokens + each.new_tokens) for each in given["workloads"])
    parts = {"parameters": model.parameters * size, "cache": tokens * kv_elements(model.spec) * size}
    return Plan(name, gpu, phases={"run": parts})


def _realize(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    """A model like the one that it is made of: that of the library, or the one that is fused."""
    parent = given["model"] if "model" in given else known.parents.get(given["library"])
    if parent is not None:
        known.writes([given["out"]], parent)
    size = EXPORT * sized(known.spec(given["out"])).parameters
    return Plan(name, gpu, disk={"model": size})


def _sampled(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    """The engine with the largest of the models that it answers with."""
    asked = given.get("asked")
    engine = given.get("engine") or getattr(asked, "engine", None) or NativeEngine()
    models = _models(given)
    if not isinstance(engine, RolloutEngine) or not models:
        return Plan(name, gpu)
    plans = [served(name, known.spec(path), engine, gpu) for path in models]
    return max(plans, key=lambda plan: (len(plan.obstacles), plan.peak_bytes))


_PLANNERS: dict[str, Callable[[str, Mapping[str, Any], Gpu, Known], Plan]] = {
    "library": _library,
    "score": _score,
    "measure": _measure,
    "refine": _refine,
    **dict.fromkeys(("realize", "fuse"), _realize),
    **dict.fromkeys(("annotate", "generate", "eval", "sweep"), _sampled),
}
