"""Lays out documents in rows of a fixed length, and collates rows to a `TokenBatch`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lnlit.data.chat import Document
from lnlit.interfaces import IGNORE, TokenBatch

Row = Sequence[Document]
#: (number of a document, its first token, the one after its last): the part of it that goes into a row.
Piece = tuple[int, int, int]


class Layout(ABC):
    """How documents are laid out in rows. Its `repr` is complete, so that it identifies the layout."""

    @abstractmethod
    def rows(self, lengths: np.ndarray) -> Sequence[Sequence[Piece]]:
        """The rows of documents of these lengths, in tokens."""


@dataclass(frozen=True)
class OnePerRow(Layout):
    """Each document in a row of its own."""

    def rows(self, lengths: np.ndarray) -> Sequence[Sequence[Piece]]:
        return [[(number, 0, length)] for number, length in enumerate(lengths.tolist())]


@dataclass(frozen=True)
class BestFit(Layout):
    """Whole documents, as many as fit into `capacity` tokens. None may be longer than that."""

    capacity: int

    def rows(self, lengths: np.ndarray) -> Sequence[Sequence[Piece]]:
        spans = lengths.tolist()
        return [[(number, 0, spans[number]) for number in pack] for pack in pack_best_fit(spans, self.capacity)]


@dataclass(frozen=True)
class Cut(Layout):
    """All documents in one sequence that is cut every `length` tokens. If a row's last document continues, the row
    holds one more token, the label of its last position (see `collate`)."""

    length: int

    def rows(self, lengths: np.ndarray) -> Sequence[Sequence[Piece]]:
        return _CutRows(lengths, self.length)


class _CutRows(Sequence[Sequence[Piece]]):
    """Rows computed on demand: memory is one number per document, not per row."""

    def __init__(self, lengths: np.ndarray, length: int) -> None:
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.length = length
        self.total = int(self.ends[-1]) if len(self.ends) else 0

    def __len__(self) -> int:
        return -(-(self.total - 1) // self.length) if self.total > 1 else min(self.total, 1)

    def __getitem__(self, row: int) -> Sequence[Piece]:  # type: ignore[override]
        if not 0 <= row < len(self):
            raise IndexError(row)
        begin = row * self.length
        end = min(begin + self.length, self.total)
        number = int(np.searchsorted(self.ends, begin, side="right"))
        pieces = []
        while number < len(self.ends) and self.starts[number] < end:
            start, stop = int(self.starts[number]), int(self.ends[number])
            pieces.append((number, max(begin - start, 0), min(stop, end + 1) - start))
            number += 1
        return pieces


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

    A row's last document may be one token too long; that token is only a label. An empty row is all padding: the ranks
    of a distributed run need the same number of rows, and the data may not divide evenly.
    """
    tokens = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    labels = torch.full_like(tokens, IGNORE)
    positions = torch.zeros_like(tokens)
    lengths: list[int] = []
    for b, row in enumerate(rows):
        spans = [len(document) for document in row]
        padding = length - sum(spans)
        if padding == -1:
            spans[-1], padding = spans[-1] - 1, 0
        start = padding if padding_side == "left" else 0
        for span, document in zip(spans, row, strict=True):
            ids = torch.from_numpy(np.array(document.tokens, dtype=np.int64))
            learned = torch.from_numpy(np.array(document.loss_mask, dtype=np.bool_))
            tokens[b, start : start + span] = ids[:span]
            labels[b, start : start + len(ids) - 1] = torch.where(learned[1:], ids[1:], IGNORE)
            start += span
        if padding:
            spans = [padding, *spans] if padding_side == "left" else [*spans, padding]
        positions[b] = torch.cat([torch.arange(span) for span in spans])
        lengths += spans
    return TokenBatch(tokens, labels, positions, lengths)
