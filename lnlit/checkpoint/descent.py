"""Which layers of the models before it a model's layers are made of.

The provenance of a model folder names the `parent` that it was made from, the parent's `layers` that each of its own is
made of (absent: one to one), and repeats the parent's own provenance. So the way back is known even when the folders
between are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lnlit.checkpoint.fingerprint import origin
from lnlit.checkpoint.folder import LnlitFolder, read_provenance
from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.checkpoint.lightning import LightningCheckpoint
from lnlit.errors import UserError
from lnlit.models.lineage import Lineage


def descent(parent: str | Path, layers: Lineage | None = None) -> dict[str, Any]:
    """What a model made from `parent` records of that; `layers` are those of the parent that each layer is made of."""
    record: dict[str, Any] = {"parent": origin(str(parent))}
    if layers is not None:
        record["layers"] = [list(made_of) for made_of in layers]
    if before := _provenance(resolve(parent)):
        record["parent_provenance"] = before
    return record


def ancestors(model: str) -> Iterator[tuple[str, Lineage]]:
    """`model` itself and the models before it, nearest first: (absolute path or `pypi:` name, the layers there that
    each layer of `model` is made of). `UserError` for a record that contradicts itself.
    """
    made_of: Lineage = tuple((index,) for index in range(len(read_spec(model).layers)))
    yield origin(model), made_of
    record = _provenance(resolve(model))
    while "parent" in record:
        if (layers := record.get("layers")) is not None:
            try:
                made_of = tuple(tuple(chain.from_iterable(layers[index] for index in each)) for each in made_of)
            except (IndexError, TypeError) as error:
                raise UserError(f"{model}: its provenance says other layers than it has: {error}.") from error
        yield record["parent"], made_of
        record = record.get("parent_provenance", {})


def _provenance(path: Path) -> dict[str, Any]:
    """What is known of a checkpoint's origin; nothing of formats that are not ours."""
    if LnlitFolder().recognises(path):
        return read_provenance(path)
    trained = LightningCheckpoint()
    if not trained.recognises(path) or (model := trained.trained_from(path)) is None:
        return {}
    try:
        return descent(model)
    except UserError:  # it is gone
        return {"parent": model}
