"""Stage `realize`: a solution as a model folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from lnlit.checkpoint.by_layer import by_layer
from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.folder import check_target, hf_config, save_folder
from lnlit.checkpoint.formats import open_checkpoint, resolve
from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.search.library import Library
from lnlit.search.realize import child_layers, child_spec, split_choice


def realize(solution: str, library: str, out: str, index: int = 0, overwrite: bool = False) -> Path:
    """Write the child that a solution describes: parent and library weights, composed layer by layer.

    Args:
        solution: The file that `lnlit search solve` wrote.
        library: The block library that the solution chooses from.
        out: Model folder to write.
        index: Which of the file's solutions.
        overwrite: Replace a model folder that is there already.
    """
    opened, target = Library.open(library), Path(out).expanduser().resolve()
    chosen = read_solution(Path(solution).expanduser(), index)
    pairs = split_choice(opened, chosen["choice"])
    spec = child_spec(opened, pairs)
    check_target(target, overwrite)
    hf_config(spec)
    source = resolve(opened.model)
    checkpoint = open_checkpoint(source)
    opened.check_parent(opened.model, checkpoint.read_spec(source), fingerprint(opened.model))
    groups = by_layer(opened.spec, checkpoint.weights(source))
    return save_folder(
        target,
        spec,
        _weights(opened, pairs, groups),
        tokenizer_from=source,
        provenance={
            "parent": opened.model,
            "library": str(opened.folder),
            "solution": {"file": str(Path(solution).resolve()), "index": index, **chosen},
        },
        overwrite=overwrite,
    )


def read_solution(file: Path, index: int) -> dict[str, Any]:
    """One solution of a solver's result file. `UserError` when there is none, with the solver's own reason."""
    result = read_json(file, "a solution that `lnlit search solve` wrote")
    solutions = result.get("solutions")
    if not isinstance(solutions, list):
        raise UserError(f"{file}: has no list of solutions; expected the file that `lnlit search solve` wrote.")
    if not solutions:
        raise UserError(f"{file}: holds no solution ({result.get('status')}). {result.get('message') or ''}".rstrip())
    if not 0 <= index < len(solutions):
        raise UserError(f"index: {file} holds {len(solutions)} solutions, numbered from 0; got {index}.")
    chosen = solutions[index]
    if not isinstance(chosen, dict) or not isinstance(chosen.get("choice"), list):
        raise UserError(f"{file}: solutions[{index}] has no 'choice', a list with one block name per layer.")
    return chosen


def _weights(
    library: Library, pairs: Sequence[tuple[str, str]], groups: Iterable[Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The child's weights by canonical name, one layer in memory at a time."""
    groups = iter(groups)
    yield from next(groups).items()
    for layer, weights in enumerate(child_layers(library, pairs, islice(groups, len(pairs)))):
        yield from ((f"model.layers.{layer}.{name}", tensor) for name, tensor in weights.items())
    yield from next(groups).items()
