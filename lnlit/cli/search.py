"""`lnlit search STAGE`: one function of `lnlit.stages` per stage, its arguments as options or in a YAML file."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lnlit.errors import UserError, did_you_mean

#: stage -> ("module:function", one line of help), in the order of a search
STAGES: dict[str, tuple[str, str]] = {
    "library": ("lnlit.stages.library:build_library", "every layer's candidates, initialised without training"),
    "score": ("lnlit.stages.score:score", "what each candidate alone costs in quality"),
    "measure": ("lnlit.stages.measure:measure", "what each candidate costs in memory and time on this machine"),
    "solve": ("lnlit.stages.solve:solve", "the best choice per layer within the budgets, with proof"),
    "realize": ("lnlit.stages.realize:realize", "a solution as a model folder"),
    "fuse": ("lnlit.stages.fuse:fuse", "runs of attention-free layers as wide parallel FFNs"),
    "verify": ("lnlit.stages.verify:verify", "whole models measured beside what the cost table predicts"),
    "report": ("lnlit.stages.report:report", "pictures and a page of what was traded"),
}


def main(argv: list[str]) -> int:
    """Run one stage; prints the path it wrote."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = argv
    if name not in STAGES:
        raise UserError(f"search: unknown stage {name!r}.{did_you_mean(name, STAGES)} Allowed: {', '.join(STAGES)}.")
    stage, parser, config = parsed(name, rest)
    from lnlit.cli.names import cause_of

    try:
        arguments = vars(parser.instantiate_classes(config))
    except ValueError as error:  # jsonargparse wraps what a constructor raises
        raise cause_of(error) from error
    print(stage(**{key: value for key, value in arguments.items() if key not in ("config", "stage")}))
    return 0


def parsed(name: str, options: list[str]) -> tuple[Callable[..., Path], Any, Any]:
    """The stage's function, its parser and its checked configuration; nothing is built yet.

    Raises `UserError` naming the first key or value that does not fit.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    from jsonargparse import ArgumentError, ArgumentParser

    from lnlit.cli import names
    from lnlit.cli.explain import explain
    from lnlit.cli.written import Written

    written = Written(options)
    module, _, function = STAGES[name][0].partition(":")
    stage = getattr(importlib.import_module(module), function)
    names.install()
    summary = (inspect.getdoc(stage) or "").partition("\n\n")[0]
    parser = ArgumentParser(prog=f"lnlit search {name}", description=summary, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file with the arguments; later options win")
    parser.add_argument("--stage", choices=[name], default=name, help="which stage a YAML file is for")
    parser.add_function_arguments(stage, fail_untyped=True, sub_configs=True)
    try:
        return stage, parser, parser.parse_args(options)
    except ArgumentError as error:
        raise UserError(explain(parser, written, str(error))) from error


def _help() -> str:
    width = max(map(len, STAGES))
    stages = [f"  {name:<{width}}  {text}" for name, (_, text) in STAGES.items()]
    return "\n".join(
        [
            "usage: lnlit search STAGE [--config FILE.yaml] [--KEY VALUE ...]",
            "",
            "Find the best heterogeneous child of a model for a machine and a budget (Puzzle).",
            "",
            "stages:",
            *stages,
            "",
            "`lnlit search STAGE --help` explains a stage. `lnlit run FOLDER` runs a folder of numbered stages.",
        ]
    )
