"""`lnlit rollout STAGE`: stages that work with a model's completions outside of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lnlit.cli.stage_command import StageCommand

#: stage -> ("module:function", one line of help), in the order of use
STAGES: dict[str, tuple[str, str]] = {
    "annotate": ("lnlit.stages.annotate:annotate", "how often a model solves each prompt"),
    "generate": ("lnlit.stages.generate:generate", "rows with a model's completions of prompts, to learn from"),
    "curriculum": ("lnlit.stages.curriculum:curriculum", "a picture of which prompts a curriculum will take when"),
    "reference": ("lnlit.stages.reference:reference", "log-probs of given completions, for RPO with reference: data"),
    "page": ("lnlit.stages.rollout_page:page", "a page of what a run has sampled so far"),
}

COMMAND = StageCommand("rollout", "Make rows with a model's completions, and find out how hard prompts are.", STAGES)


def main(argv: list[str]) -> int:
    """Run one stage; prints the path it wrote."""
    return COMMAND.run(argv)


def parsed(name: str, options: list[str]) -> tuple[Callable[..., Path], Any, Any]:
    """See `StageCommand.parsed`."""
    return COMMAND.parsed(name, options)
