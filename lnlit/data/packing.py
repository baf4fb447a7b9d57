"""Documents to rows of a fixed length, and rows to a `TokenBatch`. A document is never split across rows."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch

from lnlit.data.chat import Document
from lnlit.interfaces import IGNORE, TokenBatch

Row = Sequence[Document]


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: document indices per pack, each pack's lengths summing to at most `capacity`.

    Longest first, each into the fullest pack that still has room; equal lengths keep their order. The number of packs
    depends only on the multiset of lengths. Packs come in the order of their first (longest) document's index, so a
    shuffled or blended order survives packing. Every length must be at most `capacity`.
    """
    packs: list[list[int]] = []
    open_packs: dict[int, list[int]] = {}  # room left -> packs with exactly that room
    rooms: list[int] = []  # the keys of open_packs, sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        at = bisect_left(rooms, length)
        if at == len(rooms):
            pack, room = len(packs), capacity
            packs.append([])
        else:
            room = rooms[at]
            pack = open_packs[room].pop()
            if not open_packs[room]:
                del open_packs[room], rooms[at]
        packs[pack].append(index)
        if (left := room - length) > 0:
            if left not in open_packs:
                open_packs[left] = []
                insort(rooms, left)
            open_packs[left].append(pack)
    return sorted(packs, key=lambda pack: pack[0])


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def collate(rows: Sequence[Row], length: int, pad_id: int, padding_side: str = "right") -> TokenBatch:
    """Rows of documents as one batch, each row padded to `length` tokens.

    An empty row is all padding: the ranks of a distributed run need equally many rows, and the data may not divide.
    """
    tokens = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    labels = torch.full_like(tokens, IGNORE)
    positions = torch.zeros_like(tokens)
    lengths: list[int] = []
    for b, row in enumerate(rows):
        padding = length - sum(len(document) for document in row)
        start = padding if padding_side == "left" else 0
        spans = [len(document) for document in row]
        if padding:
            spans = [padding, *spans] if padding_side == "left" else [*spans, padding]
        lengths += spans
        positions[b] = torch.cat([torch.arange(span) for span in spans])
        for document in row:
            end = start + len(document)
            tokens[b, start:end] = torch.as_tensor(document.tokens, dtype=torch.int64)
            learned = torch.as_tensor(document.loss_mask, dtype=torch.bool)[1:]
            labels[b, start : end - 1] = torch.where(learned, tokens[b, start + 1 : end], IGNORE)
            start = end
    return TokenBatch(tokens, labels, positions, lengths)
