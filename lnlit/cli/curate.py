"""`lnlit curate`: training rows from rows, by the steps of a configuration."""

from __future__ import annotations

from itertools import zip_longest

from lnlit.cli.stage_command import StageCommand

STAGES: dict[str, tuple[str, str]] = {
    "curate": ("lnlit.stages.curate:curate", "training rows from rows, by steps that count what they drop"),
}

COMMAND = StageCommand("curate", "Make training rows.", STAGES, default="curate")


def main(argv: list[str]) -> int:
    """Run a pipeline; prints the path it wrote. `--strict` alone means `--strict true`."""
    pairs = zip_longest(argv, argv[1:])
    is_alone = [part == "--strict" and after not in ("true", "false") for part, after in pairs]
    return COMMAND.run(["--strict=true" if alone else part for alone, part in zip(is_alone, argv, strict=True)])
