"""`lnlit merge MODEL ...`: one model from several of one architecture."""

from __future__ import annotations

from lnlit.cli.stage_command import StageCommand

STAGES: dict[str, tuple[str, str]] = {
    "merge": (
        "lnlit.stages.merge:merge",
        "one model of several: their mean, a point between two, what they learned",
    ),
    "sweep": ("lnlit.stages.sweep:sweep", "models between two, evaluated, and the one that balances two tasks"),
}

COMMAND = StageCommand(
    "merge", "Make one model of several of the same architecture.", STAGES, default="merge", words="models"
)


def main(argv: list[str]) -> int:
    """Merge models; prints the path written."""
    return COMMAND.run(argv)
