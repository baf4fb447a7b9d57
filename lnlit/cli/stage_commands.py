"""All commands whose stages are functions, and which of them a stage belongs to."""

from __future__ import annotations

from lnlit.cli import curate, evaluate, merge, rollout, search
from lnlit.cli.stage_command import StageCommand

ALL = (search.COMMAND, rollout.COMMAND, curate.COMMAND, evaluate.COMMAND, merge.COMMAND)


def of_stage(stage: str) -> StageCommand:
    """The command of a stage. For a stage that there is not, it is one that says so."""
    return next((command for command in ALL if stage in command.stages), search.COMMAND)
