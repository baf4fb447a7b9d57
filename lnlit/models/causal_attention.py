"""Causal softmax attention of whole documents, with a window or without, by torch's scaled_dot_product_attention.

Shape suffixes: B documents of one length, T tokens, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def causal_attention(q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, window: int | None = None) -> Tensor:
    """Returns [B, T, H, d]. With a `window`, each token attends to at most that many tokens, itself and those just
    before it. Queries are then processed in chunks of the size of the window, so that memory grows linearly with the
    number of tokens."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BTKd, v_BTKd))
    grouped, tokens = q.shape[1] != k.shape[1], q.shape[2]
    if window is None or window >= tokens:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)
    runs = []
    for start in range(0, tokens, window):
        first, end = max(start - window + 1, 0), min(start + window, tokens)
        query, key = (torch.arange(begin, end, device=q.device) for begin in (start, first))
        seen_TT = (key <= query[:, None]) & (key > query[:, None] - window)
        seen = (slice(None), slice(None), slice(first, end))
        run = scaled_dot_product_attention(q[:, :, start:end], k[seen], v[seen], attn_mask=seen_TT, enable_gqa=grouped)
        runs.append(run)
    return torch.cat(runs, dim=2).transpose(1, 2)
