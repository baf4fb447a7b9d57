"""`lnlit search fuse`: FFN Fusion of a model folder."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Literal

from lnlit.checkpoint.convert import with_progress
from lnlit.checkpoint.descent import descent
from lnlit.checkpoint.folder import check_target, save_folder, tell_readers
from lnlit.checkpoint.formats import open_checkpoint, resolve
from lnlit.checkpoint.load import layerwise_decoder
from lnlit.data.text import TextSample
from lnlit.errors import UserError
from lnlit.files import expanded, read_json, write_json
from lnlit.interfaces.layer import Norm
from lnlit.models import fusion
from lnlit.models.build import check_spec
from lnlit.models.device import torch_device
from lnlit.models.fusion import FusionPlan
from lnlit.models.lineage import child_spec, child_weights
from lnlit.progress import say
from lnlit.report.maps import dependency_map
from lnlit.report.picture import png
from lnlit.search.dependency import Dependency, block_dependency, parallel_windows
from lnlit.specs import ModelSpec

_METHODS = {"fuse": fusion.fused, "remove": fusion.removed, "reverse": fusion.in_reverse}


def fuse(
    model: str,
    out: str,
    method: Literal["fuse", "remove", "reverse"] = "fuse",
    norm: Norm = "own",
    leave_out: int = 1,
    max_bytes: int | None = None,
    max_width: int | None = None,
    plan: str | None = None,
    data: TextSample | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn runs of attention-free layers into fewer, wider FFNs, which run in parallel.

    Writes a model folder. Its fusion/ holds plan.json and, with data, dependency.json and dependency.png: how much each
    layer of the model depends on each other. A model without such runs is copied as it is.

    Args:
        model: Model folder to fuse, usually what `lnlit search realize` wrote.
        out: The folder to write.
        method: "fuse", or for comparison "remove" (all but the last layer of each group) or "reverse" (their order).
        norm: "own" keeps each FFN's own norm, folded into its weights; "last" gives all the last one's, as the paper.
        leave_out: How many layers at the end of each run stay as they are; the last is the most sensitive.
        max_bytes: Most bytes a fused FFN may have; a longer run becomes several.
        max_width: Greatest intermediate size a fused FFN may have.
        plan: A plan.json that says which layers to fuse, instead of norm, leave_out and the two caps.
        data: Text on which the dependencies are measured; None leaves that out.
        overwrite: Replace the model folder at out.
    """
    path, target = resolve(model), expanded(out).resolve()
    checkpoint = open_checkpoint(path)
    spec = checkpoint.read_spec(path)
    check_spec(spec)
    check_target(target, overwrite, [path, *filter(None, [plan])])
    if plan is None:
        size = 1 if max_bytes is None else next(iter(checkpoint.weights(path)))[1].element_size()
        caps = {"max_width": max_width, "max_bytes": max_bytes, "bytes_per_weight": size}
        chosen = fusion.plan_fusion(spec, leave_out=leave_out, norm=norm, **caps)
    else:
        chosen = _read_plan(
            plan, {"norm": norm, "leave_out": leave_out, "max_bytes": max_bytes, "max_width": max_width}
        )
    lineage = _METHODS[method](spec, chosen)
    child = child_spec(spec, lineage)
    dependency = None if data is None else _dependency(path, data)
    _tell(spec, child, chosen, method)
    weights = with_progress(checkpoint.weights(path), spec, f"{path.name} -> {target.name}")
    folder = save_folder(
        target,
        child,
        child_weights(spec, lineage, weights, chosen.norm),
        tokenizer_from=path,
        provenance={"stage": "fuse", "method": method, "plan": chosen.to_json(), **descent(model, lineage)},
        overwrite=overwrite,
        add_files=lambda folder: _add_record(folder / "fusion", spec, chosen, dependency),
    )
    tell_readers(folder)
    return folder


def _read_plan(file: str, wishes: dict[str, object]) -> FusionPlan:
    if any(wishes[name] != signature(fuse).parameters[name].default for name in wishes):
        raise UserError(f"fuse: a plan says all of {', '.join(wishes)}. Leave these out, or the plan.")
    return FusionPlan.from_json(read_json(expanded(file), "a fusion plan"), file)


def _tell(spec: ModelSpec, child: ModelSpec, plan: FusionPlan, method: str) -> None:
    if not plan.groups:
        runs = [list(run) for run in fusion.attention_free_runs(spec)]
        say(
            f"nothing to {method}: the runs of attention-free layers are {runs or 'none'}, and {len(plan.left_out)} "
            "layers are left out at the ends; the model is copied as it is"
        )
        return
    groups = ", ".join(f"{group[0]}-{group[-1]}" for group in plan.groups)
    say(f"{method} {groups}: {len(spec.layers)} layers become {len(child.layers)}")


def _dependency(path: Path, data: TextSample) -> Dependency:
    if not path.is_dir():
        raise UserError(f"fuse: dependencies need the model's tokenizer; run `lnlit import {path} OUT` and fuse OUT.")
    device = torch_device()
    return block_dependency(layerwise_decoder(path, device), data.tokens(str(path)).to(device))


def _add_record(folder: Path, spec: ModelSpec, plan: FusionPlan, dependency: Dependency | None) -> None:
    write_json(folder / "plan.json", plan.to_json())
    if dependency is not None:
        windows = parallel_windows(dependency, spec)
        data = {**dependency.to_json(), "parallel_windows": [vars(window) for window in windows]}
        write_json(folder / "dependency.json", data)
        picture = png(lambda theme: dependency_map(theme, dependency, plan.groups))
        (folder / "dependency.png").write_bytes(picture)
