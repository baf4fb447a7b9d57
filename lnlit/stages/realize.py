"""`lnlit search realize`: writes the model folder of a solution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from lnlit.checkpoint.descent import descent
from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.folder import check_target, save_folder, tell_readers
from lnlit.checkpoint.formats import open_checkpoint, resolve
from lnlit.checkpoint.load import by_layer
from lnlit.errors import UserError
from lnlit.files import expanded, read_json
from lnlit.interfaces.solver import Solution, SolverResult
from lnlit.search.choice import BlockChoice
from lnlit.search.library import Library


def realize(solution: str, library: str, out: str, index: int = 0, overwrite: bool = False) -> Path:
    """Write the child that a solution describes: parent and library weights, composed layer by layer.

    Args:
        solution: The file that `lnlit search solve` wrote.
        library: The block library that the solution chooses from.
        out: Model folder to write.
        index: The number of the solution in the file, from 0.
        overwrite: Replace a model folder that is there already.
    """
    opened, target = Library.open(library), expanded(out).resolve()
    file = expanded(solution)
    data = read_json(file, "a solution that `lnlit search solve` wrote")
    chosen = _solution(data, file, index)
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
            "solution": {"file": str(Path(solution).resolve()), "index": index, **asdict(chosen)},
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


def _weights(
    library: Library, choices: Sequence[BlockChoice], groups: Iterable[Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The child's weights by canonical name, with one layer in memory at a time."""
    groups = iter(groups)
    yield from next(groups).items()
    for layer, weights in enumerate(library.composed_layers(choices, islice(groups, len(choices)))):
        yield from ((f"model.layers.{layer}.{name}", tensor) for name, tensor in weights.items())
    yield from next(groups).items()
