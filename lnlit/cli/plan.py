"""`lnlit plan`: what a configuration or a pipeline takes on a number of GPUs, before anything is paid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlit.cli.arguments import CommandParser, with_configs
from lnlit.cli.pipeline import Stage, stages_of
from lnlit.errors import UserError

if TYPE_CHECKING:
    from lnlit.cli.plan_known import Known
    from lnlit.planning.gpus import Gpu
    from lnlit.planning.plan import Plan


#: The options that are no overrides of a configuration.
_OWN = ("--config", "--gpu", "--gpus", "--help")


def main(argv: list[str]) -> int:
    """Print plans. Returns 0 if all stages fit, else 2."""
    parser = CommandParser(
        prog="lnlit plan",
        usage="lnlit plan [FOLDER] [--config FILE.yaml ...] [--gpu NAME] [--gpus N] [--KEY VALUE ...]",
        description="Print what stages take: memory of a GPU and of a node in each phase, disk, FLOPs and time, what "
        "does not fit, and the smallest mesh that does. Nothing is loaded. Of a model that does not exist yet, its "
        "folder needs no more than a config.json or lnlit.json; models that earlier stages of FOLDER write are known.",
    )
    parser.add_argument("folder", nargs="?", help="a folder of numbered stages, as for lnlit run")
    parser.add_argument("--config", action="append", default=[], help="a fit's or a stage's YAML file; later ones win")
    parser.add_argument("--gpu", help="a kind of GPU, or cpu; this machine's by default")
    parser.add_argument("--gpus", type=int, help="how many; by default as many as the configuration asks for")
    own, others = _divided(with_configs(argv))
    options = parser.parse_args(own)
    if bool(options.folder) == bool(options.config):
        raise UserError("plan needs one of a folder of stages and FILE.yaml. See `lnlit plan --help`.")
    if options.folder and others:
        raise UserError(f"plan: {others[0]} is for one configuration, not for a folder. Give --config.")
    plans = planned(options.folder or options.config, options.gpu, options.gpus, others)
    from lnlit.planning.table import assumptions, details, summary

    for plan in plans:
        if plan.phases:
            print("\n".join(details(plan)))
    print(f"\n{summary(plans)}\n{assumptions(plans[0])}")
    refused = [plan for plan in plans if not plan.fits]
    for plan in refused:
        print(f"{plan.stage}: {'; '.join(plan.obstacles)}.{plan.advice}")
    return 2 if refused else 0


def _divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the words of this command, the overrides of a configuration with their values, which are no folders)"""
    own: list[str] = []
    others: list[str] = []
    for before, word in zip(("", *words), words, strict=False):
        is_value = before.startswith("--") and "=" not in before and not word.startswith("--")
        option = (before if is_value else word).partition("=")[0]
        (others if option.startswith("--") and option not in _OWN else own).append(word)
    return own, others


def planned(
    what: str | Path | Sequence[str | Path], gpu: str | None = None, gpus: int | None = None, others: Sequence[str] = ()
) -> list[Plan]:
    """The plan of each stage of a folder, or of one configuration in several files."""
    from lnlit.cli.plan_known import Known
    from lnlit.planning.gpus import here, named

    if gpus is not None and (gpus < 1 or (gpus > 8 and gpus % 8)):
        raise UserError(f"gpus: expected 1 to 8, or a multiple of a node's 8; got {gpus}")
    device = here() if gpu is None else named(gpu)
    known = Known()
    if isinstance(what, str | Path):
        return [_of_stage(stage, ["--config", str(stage.file)], device, gpus, known) for stage in stages_of(Path(what))]
    options = [word for file in what for word in ("--config", str(file))] + list(others)
    return [_of_stage(Stage(Path(what[0])), options, device, gpus, known)]


def _of_stage(stage: Stage, options: list[str], gpu: Gpu, gpus: int | None, known: Known) -> Plan:
    if stage.kind is not None:
        from lnlit.cli.plan_stages import of_stage

        return of_stage(stage, options, gpu, known)
    from lnlit.cli.plan_fit import of_fit
    from lnlit.cli.train import built

    cli = built(options)
    found = of_fit(stage.name, cli.model, cli.datamodule, cli.flags, gpu, gpus, known)
    model: Any = cli.model
    if isinstance(getattr(model, "model", None), str):
        known.writes(stage.outs, model.model)
    return found
