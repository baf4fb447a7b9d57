"""`python -m lnlit.cli.check FILE...`: checks the keys and values of stages, for all files at once.

It runs in its own process, so that `lnlit run`, which may run for weeks, does not hold Lightning in memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lnlit.cli.main import user_message
from lnlit.cli.pipeline import Stage
from lnlit.cli.stage_commands import of_stage


def main(files: list[str]) -> int:
    """Prints a line on stderr for each file that is refused. Returns 2 if there is one, else 0."""
    refused = 0
    for file in files:
        try:
            check(Stage(Path(file)))
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            refused += 1
            print(f"error: {message}", file=sys.stderr, flush=True)
    return 2 if refused else 0


def check(stage: Stage) -> None:
    """Raises `UserError` for a file that its command would refuse before building anything."""
    options = ["--config", str(stage.file)]
    if stage.kind is not None:
        of_stage(stage.kind).parsed(stage.kind, options)
        return
    from lnlit.cli.train import check as check_fit

    check_fit(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
