"""Whole children of one parent on one text: what each realises, and what changes of one sub-block do to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lnlit.models.build import block_weights, build_decoder
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.search.choice import SLOTS, At, BlockChoice, LayerVariants
from lnlit.search.library import Library
from lnlit.search.metrics import Metric, MetricName
from lnlit.search.score import Scorer, observed
from lnlit.search.walk import Walk


class Children:
    """The children that a library makes of its parent. The metric observes the parent at construction.

    Args:
        parent: The parent.
        library: The library that they come from.
        batches: The text, in micro-batches of tokens [B, T].
        metric: The metric that compares a child with the parent.
        name: Which of the metric's values is the score.
    """

    def __init__(
        self,
        parent: LayerwiseDecoder,
        library: Library,
        batches: Sequence[Tensor],
        metric: Metric,
        name: MetricName,
    ) -> None:
        self.parent, self.library, self.batches, self.metric = parent, library, batches, metric
        self.name: MetricName = name
        observed(parent, batches, metric)

    def scorer(self, choices: Sequence[BlockChoice]) -> Scorer:
        """Scores changes of one sub-block of a child. Its `own_values` are those of the child."""
        walk = Walk.of_rows(self.model(choices), self.batches)
        return Scorer(self.parent, self.library, walk, self.metric, self.name)

    def model(self, choices: Sequence[BlockChoice]) -> LayerwiseDecoder:
        """A child as a model, whose layers are read from the library and the parent when they are used."""
        outer = {name: weight for name, weight in self.parent.decoder.state_dict().items() if "layers." not in name}
        dtype = self.parent.decoder.embed_tokens.weight.dtype
        decoder = build_decoder(self.library.composed_spec(choices), "meta", dtype).requires_grad_(False).eval()
        decoder.load_state_dict(outer, strict=False, assign=True)

        def read(layer: int) -> Mapping[str, Tensor]:
            with self.parent.layer(layer) as own:
                return self.library.block_weights(layer, choices[layer], block_weights(own))

        return LayerwiseDecoder(decoder, read)


def changes(variants: LayerVariants, layer: int, own: BlockChoice, wanted: Sequence[BlockChoice]) -> list[At]:
    """What to score in place of a layer's `own` choice, so that all of `wanted` have a score: single sub-blocks, and
    whole blocks where two halves were trained together.
    """
    if str(own) in variants.pairs:
        return [At(layer, "block", str(choice)) for choice in wanted if choice != own]
    found = [
        At(layer, slot, name)
        for slot, mine in zip(SLOTS, own, strict=True)
        for name in dict.fromkeys(getattr(choice, slot) for choice in wanted)
        if name != mine
    ]
    pairs = [At(layer, "block", str(choice)) for choice in wanted if str(choice) in variants.pairs]
    return sorted([*found, *pairs], key=lambda at: at.position)


def added(layer: int, own: BlockChoice, wanted: Sequence[BlockChoice], scores: Mapping[At, float]) -> dict[str, float]:
    """By choice, what it adds in place of a layer's `own`: its block's score, else the sum of its sub-blocks'."""
    found = {}
    for choice in wanted:
        halves = [At(layer, slot, name) for slot, name, mine in zip(SLOTS, choice, own, strict=True) if name != mine]
        block = At(layer, "block", str(choice))
        found[str(choice)] = scores[block] if block in scores else sum(scores[half] for half in halves)
    return found
