"""A frozen decoder that is run layer by layer, of which no more than one layer needs to be in memory.

Ranks that read one from a checkpoint divide its layers: each is read by one rank, which gives it to the others for as
long as it is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from lnlit.models.block import Block
from lnlit.models.build import load_block
from lnlit.models.decoder import Decoder
from lnlit.models.memory import free_bytes
from lnlit.models.parallelize import whole
from lnlit.models.ranks import all_gather, broadcast, my_place

#: Reads a layer's weights by their checkpoint names below the block, in the checkpoint's dtype.
ReadLayer = Callable[[int], Mapping[str, Tensor]]


class LayerwiseDecoder:
    """A decoder whose layers have weights while they are open.

    If layers are read from a checkpoint, those that this rank reads stay in memory if they take no more than half of
    what is free when this object is made, on every rank. Otherwise each is dropped when it is closed, and read anew.
    Results do not depend on it, nor on the number of ranks. If there are several, every rank must make this object and
    open the same layers.

    Args:
        decoder: The model, in evaluation mode. With `read`, its layers are on the meta device, all else is in memory.
        read: Reads the weights of a layer; of n ranks, rank r reads the layers r, r + n, ... None if the layers are in
            memory, or sharded by FSDP2, which gathers a layer to open it.
    """

    def __init__(self, decoder: Decoder, read: ReadLayer | None = None) -> None:
        self.decoder, self._read = decoder, read
        self._open: set[int] = set()
        itemsize = decoder.embed_tokens.weight.element_size()
        sizes = [itemsize * sum(weight.numel() for weight in block.parameters()) for block in decoder.layers]
        self._largest = max(sizes, default=0)
        #: (this rank, the number of ranks) that divide the layers.
        self.place = (0, 1) if read is None else my_place()
        rank, ranks = self.place
        #: True if layers stay in memory.
        self.is_resident = read is None or all(all_gather(sum(sizes[rank::ranks]) <= self._room()))

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
                if self._read is not None:
                    self._fill(index, block, self._read)
                yield block
        finally:
            self._open.discard(index)
            if not (self.is_resident and self._owns(index)):
                block.to("meta")

    def at_once(self, size: int) -> int:
        """How many texts, whose streams take `size` bytes each, each rank is to take through the layers side by side:
        one if all layers are in memory. Otherwise each pass brings the layers anew: as many as half of what is free
        holds if that is from disk, and as many as take no more than a layer if it is from other ranks' memory.
        """
        _, ranks = self.place
        if self.is_resident and ranks == 1:
            return 1
        room = self._largest if self.is_resident else self._room() - 2 * self._largest
        return min(all_gather(int(max(room // size, 1))))

    def _owns(self, index: int) -> bool:
        rank, ranks = self.place
        return index % ranks == rank

    def _fill(self, index: int, block: Block, read: ReadLayer) -> None:
        """Gives a layer its weights, unless they are there."""
        like, (_, ranks) = self.decoder.embed_tokens.weight, self.place
        if any(weight.is_meta for weight in block.parameters()):
            if self._owns(index):
                load_block(block, {name: tensor.to(like.device, like.dtype) for name, tensor in read(index).items()})
            else:
                block.to_empty(device=like.device)
        if ranks > 1:  # as a file gives them, the owner's may be transposed
            broadcast((weight.contiguous() for weight in block.parameters()), owner=index % ranks)

    def _room(self) -> float:
        """The bytes that layers and streams may take. The other half is left to what is computed with them."""
        free = free_bytes(self.decoder.embed_tokens.weight.device)
        return float("inf") if free is None else free / 2
