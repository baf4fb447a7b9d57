"""`lnlit rollout page`: writes the page of a run's rollouts again, from the files of `RolloutLog`."""

from __future__ import annotations

from pathlib import Path

from lnlit.errors import UserError
from lnlit.files import check_output, expanded
from lnlit.report.rollouts import write_page
from lnlit.sampling.history import FOLDER, PAGE, History


def page(run: str, out: str | None = None) -> Path:
    """Writes the page of a run's rollouts as a self-contained file, even while the run is going on.

    Args:
        run: The run's folder: its trainer.default_root_dir.
        out: The HTML file to write; by default `rollouts.html` in that folder, where the run writes it too.
    """
    folder = expanded(run)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; expected a run's trainer.default_root_dir.")
    file = check_output(folder / PAGE if out is None else expanded(out), mark=b"<!DOCTYPE html>")
    write_page(file, History(folder / FOLDER))
    return file
