"""How much each layer's work depends on the layers before it (FFN Fusion, Bercovich et al. 2025, sections 3.2 and B).

A layer adds h = f(X) - X to the residual stream X. Where h_j hardly changes when layer i < j is removed, i and j can
run in parallel.

Shape suffixes: R rows, B rows at once, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.models.lineage import EMPTY
from lnlit.objectives.cosine import cosine_distance
from lnlit.progress import track
from lnlit.search.walk import Walk
from lnlit.specs import NOOP, ModelSpec


@dataclass(frozen=True)
class Dependency:
    """Means over tokens; cosine distances (1 - cosine) lie in 0 to 2. Lists are in the order of `layers`.

    `matrix[i][j]`: distance between layer j's update with and without layer i before it, 0 unless i comes before j.
    `change`: distance between a layer's input and output. `size`: norm of its update relative to its input's.
    `novelty`: distance between its update and its input; near 1 where they are orthogonal.
    """

    layers: tuple[int, ...]
    matrix: tuple[tuple[float, ...], ...]
    change: tuple[float, ...]
    size: tuple[float, ...]
    novelty: tuple[float, ...]
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Window:
    """Whole blocks that could run in parallel, with the largest and the sum of their mutual dependencies."""

    layers: tuple[int, ...]
    largest: float
    total: float


@torch.no_grad()
def block_dependency(
    parent: LayerwiseDecoder, tokens_RT: Tensor, layers: Sequence[int] | None = None, rows_at_once: int = 4
) -> Dependency:
    """Measure `layers` (None: all that have weights) on a text, `rows_at_once` rows at a time.

    For each removed layer only the layers behind it run again, up to the last one asked for. Raises `UserError` for a
    layer that the model does not have or that holds nothing.
    """
    chosen = _checked(parent.decoder.spec, layers)
    sums = torch.zeros(len(chosen), len(chosen), dtype=torch.float64)
    alone = torch.zeros(3, len(chosen), dtype=torch.float64)
    walks = Walk.of_rows(parent, [tokens_RT[:rows_at_once]]).nbytes * (len(chosen) + 2)
    passes = tokens_RT.split(rows_at_once * parent.at_once(walks))
    steps = (step for rows_RT in passes for step in _add_rows(parent, rows_RT.split(rows_at_once), chosen, sums, alone))
    for _ in track(steps, "block dependency", "layer", total=len(passes) * len(chosen)):
        pass
    change, size, novelty = (alone / tokens_RT.numel()).tolist()
    matrix = (sums / tokens_RT.numel()).tolist()
    return Dependency(
        tuple(chosen), tuple(map(tuple, matrix)), tuple(change), tuple(size), tuple(novelty), tokens_RT.numel()
    )


def parallel_windows(dependency: Dependency, spec: ModelSpec, size: int = 4) -> list[Window]:
    """Runs of `size` blocks with attention that depend least on each other, best first, without overlaps.

    Greedy as in the paper's appendix B: smallest largest entry first, ties by the sum. Nothing is executed: blocks with
    attention cannot be concatenated, and no serving engine runs them in parallel.
    """
    place = {layer: at for at, layer in enumerate(dependency.layers)}
    filled = [index for index, block in enumerate(spec.layers) if block != EMPTY]
    found = []
    for start in range(len(filled) - size + 1):
        layers = tuple(filled[start : start + size])
        if all(layer in place and spec.layers[layer].attention != NOOP for layer in layers):
            entries = [dependency.matrix[place[i]][place[j]] for i in layers for j in layers]
            found.append(Window(layers, max(entries), sum(entries)))
    chosen: list[Window] = []
    for window in sorted(found, key=lambda window: (window.largest, window.total)):
        if not any(set(window.layers) & set(other.layers) for other in chosen):
            chosen.append(window)
    return chosen


def _checked(spec: ModelSpec, layers: Sequence[int] | None) -> list[int]:
    filled = [index for index, block in enumerate(spec.layers) if block != EMPTY]
    for layer in layers or ():
        if layer not in filled:
            raise UserError(f"block dependency: layer {layer} is absent or has no weights; those with are {filled}.")
    chosen = filled if layers is None else sorted(set(layers))
    if not chosen:
        raise UserError("block dependency: there are no layers to compare; name some, or leave `layers` out for all.")
    return chosen


def _add_rows(
    parent: LayerwiseDecoder, batches: Sequence[Tensor], chosen: list[int], sums: Tensor, alone: Tensor
) -> Iterator[int]:
    """Add the distances of some rows, summed over their tokens, to `sums` [i, j] and `alone` [change/size/novelty, j],
    in one pass over the layers. Yields each layer that is compared when it is done."""
    walk, place = Walk.of_rows(parent, batches), {layer: at for at, layer in enumerate(chosen)}
    without: dict[int, Walk] = {}
    for layer in range(chosen[-1] + 1):
        with parent.layer(layer):
            skipped = walk.beside(2)
            here = _over(walk, layer)
            others = {removed: _over(other, layer) for removed, other in without.items()}
        if layer not in place:
            continue
        for x_BTD, y_BTD, update in here:
            size = (update.norm(dim=-1) / x_BTD.float().norm(dim=-1)).double().sum()
            facts = (_distance(x_BTD, y_BTD), size, _distance(update, x_BTD))
            alone[:, place[layer]] += torch.stack([fact.cpu() for fact in facts])
        for removed, theirs in others.items():
            for (*_, update), (*_, other) in zip(here, theirs, strict=True):
                sums[place[removed], place[layer]] += _distance(update, other).cpu()
        without[layer] = skipped
        yield layer


def _over(walk: Walk, layer: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Input, output and update of the layer in front of the walk on each micro-batch. The walk goes on behind it."""
    before = walk.streams
    walk.seek(2 * layer + 2)
    return [(x_BTD, y_BTD, y_BTD.float() - x_BTD.float()) for x_BTD, y_BTD in zip(before, walk.streams, strict=True)]


def _distance(a_BTD: Tensor, b_BTD: Tensor) -> Tensor:
    """1 - cosine, summed over tokens."""
    return cosine_distance(a_BTD, b_BTD).double().sum()
