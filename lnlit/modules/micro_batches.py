"""Splits batches into pieces to limit activation memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lnlit.interfaces import IGNORE, TokenBatch


def split_rows(batch: TokenBatch, tokens: int) -> list[TokenBatch]:
    """Splits a batch into pieces of whole rows with at most `tokens` tokens, or a single row."""
    length = batch.tokens.shape[1]
    rows = max(tokens // length, 1)
    tensors = (batch.tokens.split(rows), batch.labels.split(rows), batch.positions.split(rows))
    lengths = iter(batch.lengths)
    pieces = []
    for tokens_BT, labels_BT, positions_BT in zip(*tensors, strict=True):
        documents: list[int] = []
        while sum(documents) < tokens_BT.numel():  # no document is in two rows
            documents.append(next(lengths))
        pieces.append(TokenBatch(tokens_BT, labels_BT, positions_BT, documents))
    return pieces


def documents_in_rows(tokens_RT: Tensor, tokens: int) -> Iterator[TokenBatch]:
    """Batches with one document per row and at most `tokens` tokens, or a single row."""
    length = tokens_RT.shape[1]
    for tokens_BT in tokens_RT.split(max(tokens // length, 1)):
        positions_BT = torch.arange(length, device=tokens_BT.device).expand_as(tokens_BT)
        yield TokenBatch(tokens_BT, tokens_BT, positions_BT, [length] * len(tokens_BT))


def real_tokens(batch: TokenBatch) -> Tensor:
    """A mask [B, T] that is False in padding, which is a document without labels."""
    lengths = torch.tensor(batch.lengths, device=batch.tokens.device)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    labels = torch.zeros_like(lengths).index_add_(0, document, (batch.labels != IGNORE).flatten().long())
    return (labels > 0)[document].view(batch.tokens.shape)
