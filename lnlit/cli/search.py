"""`lnlit search STAGE`: the stages of an architecture search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lnlit.cli.stage_command import StageCommand

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

COMMAND = StageCommand(
    "search", "Find the best heterogeneous child of a model for a machine and a budget (Puzzle).", STAGES
)


def main(argv: list[str]) -> int:
    """Run one stage; prints the path it wrote."""
    return COMMAND.run(argv)


def parsed(name: str, options: list[str]) -> tuple[Callable[..., Path], Any, Any]:
    """See `StageCommand.parsed`."""
    return COMMAND.parsed(name, options)
