"""A frozen decoder that is run layer by layer, of which no more than one layer needs to be in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from lnlit.models.block import Block
from lnlit.models.build import load_block
from lnlit.models.decoder import Decoder
from lnlit.models.memory import free_bytes
from lnlit.models.parallelize import whole

#: Reads a layer's weights by their checkpoint names below the block, in the checkpoint's dtype.
ReadLayer = Callable[[int], Mapping[str, Tensor]]


class LayerwiseDecoder:
    """A decoder whose layers have weights while they are open.

    If layers are read from a checkpoint, they stay in memory if all of them take no more than half of what is free when
    this object is made. Otherwise each is dropped when it is closed, and read anew. Results do not depend on it.

    Args:
        decoder: The model, in evaluation mode. With `read`, its layers are on the meta device, all else is in memory.
        read: Reads the weights of a layer. None if the layers are in memory, or divided among ranks, which gather a
            layer to open it; then every rank must open it.
    """

    def __init__(self, decoder: Decoder, read: ReadLayer | None = None) -> None:
        self.decoder, self._read = decoder, read
        self._open: set[int] = set()
        itemsize = decoder.embed_tokens.weight.element_size()
        sizes = [itemsize * sum(weight.numel() for weight in block.parameters()) for block in decoder.layers]
        self._largest = max(sizes, default=0)
        #: True if layers stay in memory.
        self.is_resident = read is None or sum(sizes) <= self._room()

    @contextmanager
    def layer(self, index: int) -> Iterator[Block]:
        """A layer with its weights. It may be opened again inside the context."""
        block = self.decoder.layers[index]
        assert isinstance(block, Block)
        if index in self._open:
            yield block
            return
        self._open.add(index)
        try:
            with whole(block):
                if self._read is not None and any(weight.is_meta for weight in block.parameters()):
                    like = self.decoder.embed_tokens.weight
                    weights = self._read(index)
                    load_block(block, {name: tensor.to(like.device, like.dtype) for name, tensor in weights.items()})
                yield block
        finally:
            self._open.discard(index)
            if not self.is_resident:
                block.to("meta")

    def at_once(self, size: int) -> int:
        """How many texts, whose streams take `size` bytes each, to take through the layers side by side: one if all
        layers are in memory. Otherwise as many as half of what is free holds, because each pass reads the layers anew.
        """
        return 1 if self.is_resident else int(max((self._room() - 2 * self._largest) // size, 1))

    def _room(self) -> float:
        """The bytes that layers and streams may take. The other half is left to what is computed with them."""
        free = free_bytes(self.decoder.embed_tokens.weight.device)
        return float("inf") if free is None else free / 2
