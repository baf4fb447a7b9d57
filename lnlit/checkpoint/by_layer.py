"""A checkpoint's weights grouped by layer, so that a whole model can pass through the memory of one layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from lnlit.errors import UserError
from lnlit.models.layout import expected_shapes
from lnlit.specs import ModelSpec

EMBEDDING = "model.embed_tokens.weight"


def by_layer(spec: ModelSpec, weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """First the embedding, then each layer, then final norm and head: always `len(spec.layers) + 2` groups.

    A layer's weights are named below its block (`mlp.up_proj.weight`), the others canonically. Weights may come in any
    order; those that come early wait in memory. Raises `UserError` when some never come.
    """
    expected = list(expected_shapes(spec))
    prefixes = [f"model.layers.{index}." for index in range(len(spec.layers))]
    groups = [[EMBEDDING], *([name for name in expected if name.startswith(prefix)] for prefix in prefixes)]
    groups.append([name for name in expected if not name.startswith("model.layers.") and name != EMBEDDING])
    waiting: dict[str, Tensor] = {}
    stream = iter(weights)
    for names, prefix in zip(groups, ["", *prefixes, ""], strict=True):
        while missing := [name for name in names if name not in waiting]:
            name, tensor = next(stream, ("", None))
            if tensor is None:
                raise UserError(f"the checkpoint lacks tensor {missing[0]}.")
            waiting[name] = tensor
        yield {name.removeprefix(prefix): waiting.pop(name) for name in names}
