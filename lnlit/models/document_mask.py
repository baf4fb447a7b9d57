"""The block mask of a packed batch for FlexAttention, computed from document boundaries.

torch's `create_block_mask` looks at every pair of tokens, which takes 3 GiB for a row of 32k tokens. Document
boundaries alone determine which of the 256 x 256 blocks of 128 x 128 pairs are needed.

Shape suffixes: T tokens of all rows, N blocks of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lnlit.interfaces import Segments

_BLOCK = 128


def document_mask(segments: Segments, total: int, window: int | None = None) -> BlockMask:
    """The block mask of causal attention within documents over `total` tokens, equal to that of `create_block_mask`.
    With a `window`, each token attends to at most that many tokens, itself and those just before it."""
    reach = total if window is None else window
    bounds, device = segments.cu_seqlens, segments.cu_seqlens.device
    document_T = torch.searchsorted(bounds[1:], torch.arange(total, device=device), right=True)

    def same_document(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < reach) & (document_T[query] == document_T[key])

    first_N = torch.arange(0, total, _BLOCK, device=device)  # each block's first and last token
    last_N = (first_N + _BLOCK).clamp(max=total) - 1
    begin_first_N, begin_last_N = (
        torch.maximum(bounds[document_T[tokens_N]], tokens_N - reach + 1) for tokens_N in (first_N, last_N)
    )
    # A query attends to the keys from the start of its document or window to itself. So a block of queries attends to
    # all key blocks from the start of its first query's range. An earlier key block needs no mask if the last query
    # attends to all of it.
    block_N = torch.arange(len(first_N), device=device)
    seen_NN = (block_N * _BLOCK + _BLOCK > begin_first_N[:, None]) & (block_N <= block_N[:, None])
    whole_NN = (block_N * _BLOCK >= begin_last_N[:, None]) & (block_N < block_N[:, None])
    whole_NN &= (last_N - first_N + 1 == _BLOCK)[:, None]
    partly, whole = _ordered(seen_NN & ~whole_NN), _ordered(whole_NN)
    return BlockMask.from_kv_blocks(
        *partly, *whole, BLOCK_SIZE=_BLOCK, mask_mod=same_document, seq_lengths=(total, total)
    )


def _ordered(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
    """(number of key blocks of each query block, their indices in ascending order followed by the unused ones), for one
    batch and one head."""
    order_NN = blocks_NN.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_NN.sum(-1, dtype=torch.int32)[None, None], order_NN.int()[None, None]
