"""`lnlit search realize`: writes the model folder of a solution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from lnlit.checkpoint.descent import descent
from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.folder import check_target, save_folder, tell_readers
from lnlit.checkpoint.formats import open_checkpoint, resolve
from lnlit.checkpoint.load import by_layer
from lnlit.errors import UserError, did_you_mean
from lnlit.files import expanded, read_json
from lnlit.interfaces.solver import Solution, SolverResult
from lnlit.schema import read
from lnlit.search.choice import BlockChoice
from lnlit.search.library import Library
from lnlit.stages.solve import children_by_name


def realize(
    solution: str, library: str, out: str, index: int = 0, name: str | None = None, overwrite: bool = False
) -> Path:
    """Write the child that a solution describes: parent and library weights, composed layer by layer.

    Args:
        solution: The file that `lnlit search solve` or `refine` wrote.
        library: The block library that the solution chooses from.
        out: Model folder to write.
        index: The number of the solution in the file, from 0.
        name: Instead of `index`, a child by its name, such as "ratio greedy" or "uniform": after `solve` those of the
            solver ("child", "child 2") and of the baselines, after `refine` all that it measured.
        overwrite: Replace a model folder that is there already.
    """
    opened, target = Library.open(library), expanded(out).resolve()
    file = expanded(solution)
    data = read_json(file, "a solution that `lnlit search solve` wrote")
    chosen = _solution(data, file, index) if name is None else _named(data, file, index, name)
    opened.check_made_from(data.get("library"), str(file))
    choices = opened.choices(chosen.choice)
    source = resolve(opened.model)
    check_target(target, overwrite, [source, opened.folder, solution])
    checkpoint = open_checkpoint(source)
    opened.check_parent(opened.model, checkpoint.read_spec(source), fingerprint(opened.model))
    groups = by_layer(opened.spec, checkpoint.weights(source))
    folder = save_folder(
        target,
        opened.composed_spec(choices),
        _weights(opened, choices, groups),
        tokenizer_from=source,
        provenance={
            **descent(opened.model),
            "library": str(opened.folder),
            "library_sha256": opened.identity["sha256"],
            "solution": {
                "file": str(Path(solution).resolve()),
                **({"index": index} if name is None else {"name": name}),
                **asdict(chosen),
            },
        },
        overwrite=overwrite,
    )
    tell_readers(folder)
    return folder


def _solution(data: Mapping[str, Any], file: Path, index: int) -> Solution:
    """One solution of a solver's result file. Raises `UserError` with the solver's message if there is none."""
    result = SolverResult.from_json(data, str(file))
    if not result.solutions:
        raise UserError(f"{file}: holds no solution ({result.status}). {result.message}".rstrip())
    if not 0 <= index < len(result.solutions):
        raise UserError(f"index: {file} holds {len(result.solutions)} solutions, numbered from 0; got {index}.")
    return result.solutions[index]


def _named(data: Mapping[str, Any], file: Path, index: int, name: str) -> Solution:
    """A child by name. Raises `UserError` if the file has none of that name, and for an index beside a name."""
    if index:
        raise UserError(f"index: {index} and name: {name!r} may be two children; give one of them.")
    if (refined := data.get("refined")) is None:
        found = children_by_name(data, str(file))
    else:
        listed = read(_Refined, refined, f"{file}: refined", others=True).children
        children = [read(_Child, child, f"{file}: refined.children", others=True) for child in listed]
        found = {child.name: Solution(child.choice, child.score, {}) for child in children}
    if name not in found:
        known = ", ".join(each for each in found if not each.startswith("random ")) or "none"
        raise UserError(f"name: {file} has no child {name!r}.{did_you_mean(name, found)} It has {known}.")
    return found[name]


@dataclass(frozen=True)
class _Child:
    name: str
    score: float
    choice: tuple[str, ...]


@dataclass(frozen=True)
class _Refined:
    """What `lnlit search refine` keeps of the children that it has measured."""

    children: tuple[Mapping[str, Any], ...]


def _weights(
    library: Library, choices: Sequence[BlockChoice], groups: Iterable[Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The child's weights by canonical name, with one layer in memory at a time."""
    groups = iter(groups)
    yield from next(groups).items()
    for layer, weights in enumerate(library.composed_layers(choices, islice(groups, len(choices)))):
        yield from ((f"model.layers.{layer}.{name}", tensor) for name, tensor in weights.items())
    yield from next(groups).items()
