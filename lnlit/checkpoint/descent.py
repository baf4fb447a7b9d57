"""The ancestry of models: which layers of earlier models the layers of a model are made of.

The provenance of a model folder names its `parent` and the parent's `layers` that each of its layers is made of (absent
if one to one), and repeats the parent's own provenance. So the ancestry is known even when the folders in between are
gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lnlit.checkpoint.fingerprint import model_source
from lnlit.checkpoint.folder import LnlitFolder, read_provenance
from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.checkpoint.licence import licence_of
from lnlit.checkpoint.lightning import LightningCheckpoint
from lnlit.errors import UserError
from lnlit.models.lineage import Lineage


def descent(parent: str | Path, layers: Lineage | None = None) -> dict[str, Any]:
    """The record of ancestry for a model made from `parent`. `layers` are the parent's layers that each layer is made
    of."""
    record: dict[str, Any] = {"parent": model_source(str(parent))}
    if layers is not None:
        record["layers"] = [list(made_of) for made_of in layers]
    if before := _provenance(resolve(parent)):
        record["parent_provenance"] = before
    elif licence := licence_of(str(parent)):
        record["parent_licence"] = licence
    return record


def ancestors(model: str) -> Iterator[tuple[str, Lineage]]:
    """Yields `model` itself and its ancestors, nearest first: (absolute path or `pypi:` name, the layers there that
    each layer of `model` is made of). Raises `UserError` for a record that contradicts itself."""
    made_of: Lineage = tuple((index,) for index in range(len(read_spec(model).layers)))
    yield model_source(model), made_of
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
    """The known provenance of a checkpoint; empty for formats that are not lnlit's."""
    if LnlitFolder().recognises(path):
        return read_provenance(path)
    trained = LightningCheckpoint()
    if not trained.recognises(path) or (model := trained.trained_from(path)) is None:
        return {}
    try:
        return {**descent(model), **trained.run(path)}
    except UserError:  # it is gone
        return {"parent": model, **trained.run(path)}
