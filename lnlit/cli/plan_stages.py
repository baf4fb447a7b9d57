"""What the stages of search, sampling and evaluation ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lnlit.cli import blame
from lnlit.cli.parser import rows_may_come
from lnlit.cli.pipeline import Stage
from lnlit.cli.plan_known import Known
from lnlit.cli.stage_commands import of_stage as command_of
from lnlit.data.text import TextSample
from lnlit.interfaces import RolloutEngine
from lnlit.planning.blocks import Text, layer_by_layer, library_bytes, tried
from lnlit.planning.gpus import Gpu
from lnlit.planning.plan import EXPORT, Plan, served
from lnlit.planning.sizes import Mesh, sized
from lnlit.rollout.native import NativeEngine
from lnlit.search.costs import DTYPES
from lnlit.search.library import Library


def of_stage(stage: Stage, options: list[str], gpu: Gpu, known: Known) -> Plan:
    """The plan of a stage that is a function. Stages without a planner here need no GPU's memory worth a plan."""
    kind = str(stage.kind)
    _, parser, config = command_of(kind).parsed(kind, options)
    rows_may_come(parser)
    try:
        given = vars(parser.instantiate_classes(config))
    except Exception as error:
        blame.blamed(blame.while_building(error), error)
    planner = _PLANNERS.get(kind, _no_gpu)
    found = planner(stage.name, given, gpu, known)
    models = _models(given)
    if models:
        known.writes(stage.outs, models[0])
    return found


def _models(given: Mapping[str, Any]) -> list[str]:
    """The models that a stage names, the one that its result is made of first."""
    named = [given.get("model"), *(given.get("models") or []), given.get("against")]
    return [str(path) for path in named if path]


def _no_gpu(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    return Plan(name, gpu, Mesh(1, 1), {})


def _library(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    spec, candidates = known.spec(given["model"]), given["candidates"]
    known.candidates[given["out"]] = candidates
    known.parents[given["out"]] = given["model"]
    data = given["data"]
    text = Text(data.rows * data.length, max(given["batch_tokens"], data.length))
    disk = {"library": library_bytes(spec, tried(spec, candidates))}
    return layer_by_layer(name, spec, text, gpu, given["dtype"] == "bfloat16", disk=disk)


def _score(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    data, spec, batch = given["data"], known.spec(given["model"]), given["batch_tokens"]
    is_text = isinstance(data, TextSample)
    text = Text(data.rows * data.length, max(batch, data.length)) if is_text else Text(batch, batch)
    plan = layer_by_layer(name, spec, text, gpu, given["dtype"] == "bfloat16", scored=True)
    return (
        plan
        if is_text
        else replace(plan, notes=(*plan.notes, "of the questions, whose lengths are not known, one batch is counted"))
    )


def _measure(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    """The models that are timed: so many layers of the parent, with the largest workload's cache."""
    library = given["library"]
    parent = known.parents.get(library) or Library.open(library).model
    if not given["timing"]:
        return _no_gpu(name, given, gpu, known)
    spec, size = known.spec(parent), DTYPES[given["dtype"]]
    model = sized(spec.replace(layers=spec.layers[: given["layers"] or 32]))  # measure's own default
    tokens = max(each.batch_size * (each.prompt_tokens + each.new_tokens) for each in given["workloads"])
    parts = {"parameters": model.parameters * size, "cache": tokens * model.kv_elements * size}
    return Plan(name, gpu, Mesh(1, 1), {"run": parts})


def _realize(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    parent = known.parents.get(given["library"])
    if parent is not None:
        known.writes([given["out"]], parent)
    return _written(name, given["out"], gpu, known)


def _fuse(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    known.writes([given["out"]], given["model"])
    return _written(name, given["out"], gpu, known)


def _written(name: str, out: str, gpu: Gpu, known: Known) -> Plan:
    return Plan(name, gpu, Mesh(1, 1), {}, disk={"model": EXPORT * sized(known.spec(out)).parameters})


def _sampled(name: str, given: Mapping[str, Any], gpu: Gpu, known: Known) -> Plan:
    """The engine with the largest of the models that it answers with."""
    asked = given.get("asked")
    engine = given.get("engine") or getattr(asked, "engine", None) or NativeEngine()
    models = _models(given)
    if not isinstance(engine, RolloutEngine) or not models:
        return _no_gpu(name, given, gpu, known)
    plans = [served(name, known.spec(path), engine, gpu) for path in models]
    return max(plans, key=lambda plan: (len(plan.obstacles), plan.peak_bytes))


_PLANNERS: dict[str, Callable[[str, Mapping[str, Any], Gpu, Known], Plan]] = {
    "library": _library,
    "score": _score,
    "measure": _measure,
    "realize": _realize,
    "fuse": _fuse,
    **dict.fromkeys(("annotate", "generate", "eval", "sweep"), _sampled),
}
