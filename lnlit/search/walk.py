"""A text on its way through the parent: what scoring, the first candidates of a library, blockwise distillation and
block dependency have in common. Activations in front of the current sub-block are kept and nothing more.

A position counts sub-blocks: 2 * l is in front of layer l, 2 * l + 1 between its attention and its FFN.

Shape suffixes: R rows, B rows of a micro-batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lnlit.interfaces import TokenBatch
from lnlit.interfaces.layer import Attend
from lnlit.models.block import Block
from lnlit.models.decoder import Decoder
from lnlit.models.layerwise import LayerwiseDecoder
from lnlit.models.packed_attention import AttentionContext
from lnlit.models.parallelize import is_split, whole
from lnlit.models.weights import whole_block
from lnlit.search.choice import Slot

Rope = Mapping[int, tuple[Tensor, Tensor]]
#: What blocks need beside a residual stream, as `Decoder.block_inputs` gives it.
BlockInputs = tuple[AttentionContext, Rope]


@dataclass(frozen=True)
class Step:
    """One layer of the parent on one micro-batch: its block and the residual stream before, within and behind it."""

    block: Block
    x_BTD: Tensor
    h_BTD: Tensor
    out_BTD: Tensor
    attend: Attend
    rope: Rope

    def output(self, child: Block, slot: Slot) -> Tensor:
        """The layer's output with `child` in one slot beside the parent's own half, or in its whole place."""
        if slot == "ffn":
            return child.add_ffn(self.h_BTD)
        if slot == "block":
            return child(self.x_BTD, self.attend, self.rope)
        return self.block.add_ffn(child.add_attention(self.x_BTD, self.attend, self.rope))


class Walk:
    """The residual streams of a text on their way through the parent, without gradients and only forward.

    Args:
        parent: The parent model. A layer is open while the streams pass it.
        streams: The stream of each micro-batch before `position`, [B, T, D].
        block_inputs: Attention and rope tables of each micro-batch.
        position: The number of sub-blocks that the streams have passed.
    """

    def __init__(
        self,
        parent: LayerwiseDecoder,
        streams: Sequence[Tensor],
        block_inputs: Sequence[BlockInputs],
        position: int = 0,
    ) -> None:
        self.parent, self.block_inputs = parent, block_inputs
        self.streams, self.position, self.end = list(streams), position, 2 * len(parent.decoder.layers)

    @classmethod
    @torch.no_grad()
    def of_rows(cls, parent: LayerwiseDecoder, batches: Sequence[Tensor]) -> Walk:
        """From micro-batches of tokens [B, T], each row one document. Rows share one rope table."""
        streams = [parent.decoder.embed(tokens_BT) for tokens_BT in batches]
        known: dict[torch.Size, BlockInputs] = {}
        for tokens_BT in batches:
            if tokens_BT.shape not in known:
                positions_1T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
                known[tokens_BT.shape] = parent.decoder.block_inputs(tokens_BT, streams[0].dtype, positions_1T)
        return cls(parent, streams, [known[tokens_BT.shape] for tokens_BT in batches])

    @classmethod
    @torch.no_grad()
    def of_batches(cls, parent: LayerwiseDecoder, batches: Sequence[TokenBatch]) -> Walk:
        """From packed micro-batches. A sharded parent's embedding is gathered for it: every rank must come here."""
        with whole(parent.decoder):
            streams = [parent.decoder.embed(batch.tokens) for batch in batches]
            around = [
                parent.decoder.block_inputs(batch.tokens, x_BTD.dtype, batch.positions, batch.lengths)
                for batch, x_BTD in zip(batches, streams, strict=True)
            ]
        return cls(parent, streams, around)

    @property
    def nbytes(self) -> int:
        """The bytes of the streams."""
        return sum(x_BTD.nbytes for x_BTD in self.streams)

    @torch.no_grad()
    def seek(self, position: int) -> None:
        """Move the text to `position`. If both halves of a block are needed, they run in one call."""
        if position < self.position:
            raise ValueError(f"the walk is at {self.position} already, behind {position}")
        while self.position < position:
            layer, is_ffn = divmod(self.position, 2)
            with self.parent.layer(layer) as block:
                if is_ffn:
                    self.streams = [block.add_ffn(x_BTD) for x_BTD in self.streams]
                else:
                    self._run(block if self.position + 2 <= position else block.add_attention)
            self.position += 1 if is_ffn or self.position + 1 == position else 2

    def steps(self) -> list[Step]:
        """The next layer on every micro-batch. The walk goes on behind it."""
        layer, before = self.position // 2, self.streams
        with self.parent.layer(layer) as block:
            self.seek(2 * layer + 1)
            within = self.streams
            self.seek(2 * layer + 2)
        return [
            Step(block, x_BTD, h_BTD, out_BTD, attention.layer(layer), rope)
            for x_BTD, h_BTD, out_BTD, (attention, rope) in zip(
                before, within, self.streams, self.block_inputs, strict=True
            )
        ]

    @torch.no_grad()
    def beside(self, width: int, block: Block | None = None) -> Walk:
        """A walk of its own behind the next `width` sub-blocks, with `block` in their place, or nothing."""
        other = Walk(self.parent, self.streams, self.block_inputs, self.position)
        if block is not None:
            other._run(block)
        other.position += width
        return other

    def hidden(self) -> Iterator[Tensor]:
        """The final hidden states [B, T, D] of each micro-batch. The walk goes to the end for it."""
        self.seek(self.end)
        return (self.parent.decoder.norm(x_BTD) for x_BTD in self.streams)

    def _run(self, block: Callable[..., Tensor]) -> None:
        """Runs a block, or its attention, at the current position."""
        layer = self.position // 2
        self.streams = [
            block(x_BTD, attention.layer(layer), rope)
            for x_BTD, (attention, rope) in zip(self.streams, self.block_inputs, strict=True)
        ]


def parent_steps(
    parent: Decoder, batches: Sequence[TokenBatch], layers: Sequence[int]
) -> Iterator[tuple[int, list[Step]]]:
    """(layer, the parent's step on each batch) at `layers`, from one forward pass that ends behind the last of them.

    A sharded parent's layer is gathered until the next one is asked for; every rank must ask for all. If tensor
    parallelism divides it, the steps have a whole copy of it, which a rank can run by itself.
    """
    layerwise = LayerwiseDecoder(parent)
    walk = Walk.of_batches(layerwise, batches)
    for layer in range(max(layers) + 1):
        with layerwise.layer(layer) as block:
            steps = walk.steps()
            if layer in layers and not is_split(block):
                yield layer, steps
        if layer in layers and is_split(block):  # whose own weights are let go of before
            copy = whole_block(parent, layer)
            yield layer, [replace(step, block=copy) for step in steps]
