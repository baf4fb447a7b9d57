"""A text on its way through the parent: what scoring, the first candidates of a library, blockwise distillation and
block dependency have in common. Activations in front of the current sub-block are kept and nothing more.

A position counts sub-blocks: 2 * l is in front of layer l, 2 * l + 1 between its attention and its FFN.

Shape suffixes: R rows, B rows of a micro-batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lnlit.interfaces import TokenBatch
from lnlit.interfaces.layer import Attend
from lnlit.models.block import Block
from lnlit.models.build import load_block
from lnlit.models.decoder import Decoder
from lnlit.models.packed_attention import AttentionContext
from lnlit.models.parallelize import whole
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
        parent: The parent model. Layers that the walk has not reached may be on the meta device (see `in_memory`).
        streams: The stream of each micro-batch before `position`, [B, T, D].
        block_inputs: Attention and rope tables of each micro-batch.
        position: The number of sub-blocks that the streams have passed.
    """

    def __init__(
        self, parent: Decoder, streams: Sequence[Tensor], block_inputs: Sequence[BlockInputs], position: int = 0
    ) -> None:
        self.parent, self.block_inputs = parent, block_inputs
        self.streams, self.position, self.end = list(streams), position, 2 * len(parent.layers)

    @classmethod
    @torch.no_grad()
    def of_rows(cls, parent: Decoder, batches: Sequence[Tensor]) -> Walk:
        """From micro-batches of tokens [B, T], each row one document. Rows share one rope table."""
        streams = [parent.embed(tokens_BT) for tokens_BT in batches]
        known: dict[torch.Size, BlockInputs] = {}
        for tokens_BT in batches:
            if tokens_BT.shape not in known:
                positions_1T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
                known[tokens_BT.shape] = parent.block_inputs(tokens_BT, streams[0].dtype, positions_1T)
        return cls(parent, streams, [known[tokens_BT.shape] for tokens_BT in batches])

    @classmethod
    @torch.no_grad()
    def of_batches(cls, parent: Decoder, batches: Sequence[TokenBatch]) -> Walk:
        """From packed micro-batches. A sharded parent's embedding is gathered for it: every rank must come here."""
        with whole(parent):
            streams = [parent.embed(batch.tokens) for batch in batches]
            around = [
                parent.block_inputs(batch.tokens, x_BTD.dtype, batch.positions, batch.lengths)
                for batch, x_BTD in zip(batches, streams, strict=True)
            ]
        return cls(parent, streams, around)

    @torch.no_grad()
    def seek(self, position: int) -> None:
        """Move the text to `position`."""
        if position < self.position:
            raise ValueError(f"the walk is at {self.position} already, behind {position}")
        self.streams = [self._from(self.position, position, x_BTD, index) for index, x_BTD in enumerate(self.streams)]
        self.position = position

    def steps(self) -> list[Step]:
        """The next layer on every micro-batch. The walk goes on behind it."""
        layer, before = self.position // 2, self.streams
        block = self._block(layer)
        self.seek(2 * layer + 1)
        within = self.streams
        self.seek(2 * layer + 2)
        return [
            Step(block, x_BTD, h_BTD, out_BTD, attention.layer(layer), rope)
            for x_BTD, h_BTD, out_BTD, (attention, rope) in zip(
                before, within, self.streams, self.block_inputs, strict=True
            )
        ]

    def without(self, width: int) -> Walk:
        """A walk of its own that leaves out the next `width` sub-blocks."""
        return Walk(self.parent, self.streams, self.block_inputs, self.position + width)

    def hidden(self, block: Block | None = None, width: int = 0) -> Iterator[Tensor]:
        """Final hidden states [B, T, D] of each micro-batch, with the next `width` sub-blocks replaced by `block`."""
        for index, x_BTD in enumerate(self.streams):
            if block is not None:
                attention, rope = self.block_inputs[index]
                x_BTD = block(x_BTD, attention.layer(self.position // 2), rope)
            yield self.parent.norm(self._from(self.position + width, self.end, x_BTD, index))

    def _from(self, position: int, end: int, x_BTD: Tensor, index: int) -> Tensor:
        """The residual stream [B, T, D] of micro-batch `index` at position `end`, computed from `x_BTD`, that at
        `position`. If both halves of a block are needed, they run in one call."""
        attention, rope = self.block_inputs[index]
        while position < end:
            layer, is_ffn = divmod(position, 2)
            block = self._block(layer)
            if is_ffn:
                x_BTD, position = block.add_ffn(x_BTD), position + 1
            else:
                run, position = (block, position + 2) if position + 2 <= end else (block.add_attention, position + 1)
                x_BTD = run(x_BTD, attention.layer(layer), rope)
        return x_BTD

    def _block(self, layer: int) -> Block:
        block = self.parent.layers[layer]
        assert isinstance(block, Block)
        return block


def parent_steps(
    parent: Decoder, batches: Sequence[TokenBatch], layers: Sequence[int]
) -> Iterator[tuple[int, list[Step]]]:
    """(layer, the parent's step on each batch) at `layers`, from one forward pass that ends behind the last of them.

    A sharded parent's layer is gathered until the next one is asked for; every rank must ask for all.
    """
    walk = Walk.of_batches(parent, batches)
    for layer in range(max(layers) + 1):
        with whole(parent.layers[layer]):
            steps = walk.steps()
            if layer in layers:
                yield layer, steps


@contextmanager
def in_memory(parent: Decoder, layer: int, weights: Mapping[str, Tensor], like: Tensor) -> Iterator[None]:
    """Gives a layer of a parent on the meta device its weights for a while, on device and in dtype of `like`."""
    block = parent.layers[layer]
    assert isinstance(block, Block)
    load_block(block, {name: tensor.to(like.device, like.dtype) for name, tensor in weights.items()})
    try:
        yield
    finally:
        block.to("meta")
