"""`python -m lnlit.cli.check FILE...`: whether the keys and values of stages are such as they take, all files at once.

A process of its own: `lnlit run`, which may stay for weeks, need not hold Lightning in memory meanwhile.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lnlit.cli.main import user_message
from lnlit.cli.pipeline import Stage


def main(files: list[str]) -> int:
    """2 after a line on standard error for each file that is refused, else 0."""
    refused = 0
    for file in files:
        try:
            check(Stage(Path(file), ""))
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            refused += 1
            print(f"error: {message}", file=sys.stderr, flush=True)
    return 2 if refused else 0


def check(stage: Stage) -> None:
    """Raises `UserError` for a file that its command would refuse before it builds anything."""
    options = ["--config", str(stage.file)]
    command, *kind = stage.command
    if command == "fit":
        from lnlit.cli.train import check as check_fit

        check_fit(options)
        return
    from lnlit.cli import rollout, search

    parsed = {"rollout": rollout.parsed, "search": search.parsed}[command]
    parsed(kind[0], options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
