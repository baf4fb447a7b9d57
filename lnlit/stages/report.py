"""`lnlit search report`: a page and pictures of what a search found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lnlit import __version__
from lnlit.errors import UserError
from lnlit.files import check_output, expanded, read_json, replaced_folder
from lnlit.report.charts import Measured
from lnlit.report.picture import png
from lnlit.report.search import read_measured, read_search
from lnlit.report.search_page import page, pictures
from lnlit.search.costs import CostTable
from lnlit.search.library import Library
from lnlit.stages.solve import problem_path, read_problem

PAGE = "report.html"


def report(
    solution: str,
    out: str,
    problem: str | None = None,
    library: str | None = None,
    costs: str | None = None,
    measured: str | None = None,
    index: int = 0,
) -> Path:
    """Write a folder with report.html, which is complete in itself, and its pictures as PNG.

    Args:
        solution: The file that `lnlit search solve` wrote.
        out: The folder to write.
        problem: The problem that it solves; by default the file that `lnlit search solve` wrote beside it.
        library: The block library that it chooses from: adds the parent, and what is left of each part.
        costs: The cost table, to name the machine that was measured.
        measured: JSON {"models": [{"name", "predicted": {cost: value}, "measured": {cost: value}}]} of real children.
        index: The number of the solution in the file, from 0.
    """
    file, target = expanded(solution), expanded(out).resolve()
    _check_target(check_output(target, folder=True))
    data = read_json(file, "a solution that `lnlit search solve` wrote")
    opened = None if library is None else Library.open(library)
    asked_in = problem_path(file) if problem is None else expanded(problem)
    asked = read_problem(asked_in)
    made_from = data.get("library") or {}
    if opened is not None:
        opened.check_made_from(made_from, str(file))
    if made_from and asked.library and asked.library["sha256"] != made_from["sha256"]:
        raise UserError(
            f"{asked_in}: is a problem of the library {asked.library['folder']}, the solution {file} of "
            f"{made_from['folder']}. Name the problem that was solved."
        )
    search = read_search(data, asked, opened, str(file))
    child = search.child(index)
    table = None if costs is None else CostTable.read(costs)
    checked = [] if measured is None else _measured(measured, table, made_from, str(file))
    shown = pictures(search, child, opened, checked)
    with replaced_folder(target) as folder:
        for picture in shown:
            (folder / f"{picture.name}.png").write_bytes(png(picture.draw))
        facts = _facts(file, index, opened, table)
        (folder / PAGE).write_text(page(search, child, shown, checked, facts), encoding="utf-8")
    return target


def _measured(name: str, table: CostTable | None, made_from: Mapping[str, str], solution: str) -> list[Measured]:
    """Reads measurements. Raises `UserError` for those of another cost table or of a child of another library."""
    data = read_json(expanded(name))
    if table is not None and data.get("costs_sha256", table.sha256) != table.sha256:
        raise UserError(f"{name}: was measured beside another cost table. Name that one, or run verify again.")
    checked = read_measured(data, name)
    for model in data["models"] if made_from else ():
        if model.get("library_sha256", made_from["sha256"]) != made_from["sha256"]:
            raise UserError(
                f"{name}: {model['name']} is a child of another library than {solution}, which was solved for "
                f"{made_from['folder']}. Realize and measure that solution."
            )
    return checked


def _check_target(target: Path) -> None:
    """Raises `UserError` unless `out` is new, empty or an earlier report, which is replaced."""
    if target.exists() and not (target / PAGE).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: exists and is not a report, so it is not overwritten. Choose another folder.")


def _facts(file: Path, index: int, library: Library | None, table: CostTable | None) -> dict[str, str]:
    facts = {"solution": f"{file}, number {index}"}
    if library is not None:
        facts |= {"parent": library.model, "block library": str(library.folder)}
    if table is not None:
        machine = table.hardware
        on = machine.cpu if machine.device == "cpu" else machine.device
        work = "; ".join(map(str, table.workloads)) + " (requests x prompt + new tokens)"
        facts |= {
            "costs measured on": f"{on}, {machine.cores} cores, {machine.memory_gib} GiB, torch {machine.torch}",
            "costs measured with": f"{table.engine}, {table.dtype}, {work}",
        }
    return facts | {"written by": f"lnlit {__version__}"}
