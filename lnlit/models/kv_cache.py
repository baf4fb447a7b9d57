"""Key/value cache for batched decoding with rows of different lengths.

Shape suffixes: B batch rows, T new tokens, S cache capacity, H query heads, K key/value heads, G query heads of each,
d head size.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lnlit.interfaces.layer import Attend
from lnlit.models.causal_attention import causal_attention
from lnlit.models.parts import attention_class
from lnlit.specs import ModelSpec


class KVCache:
    """One (K, V) pair per layer that caches, each [B, K, S, d]; other layers take no memory.

    Rows are filled from position 0. Prompts are padded on the right, and each padded slot is overwritten by the token
    that belongs there before any query may attend to it. So no row needs shifting and prompts need no left padding.
    """

    def __init__(self, spec: ModelSpec, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self._keys: list[Tensor | None] = []
        self._values: list[Tensor | None] = []
        for block in spec.layers:
            shape = attention_class(block.attention).kv_cache_shape(block.attention.args)
            for store in (self._keys, self._values):
                empty = shape and torch.zeros(rows, shape[0], capacity, shape[1], dtype=dtype, device=device)
                store.append(empty)

    def at(self, positions_BT: Tensor) -> KVCache:
        """Sets the positions of the next pass. A prefill starts at 0 in all rows; later passes have one token per
        row."""
        tokens = positions_BT.shape[1]
        self._positions_BT = positions_BT
        self._rows_B1 = torch.arange(len(positions_BT), device=positions_BT.device)[:, None]
        self._used = int(positions_BT.max()) + 1
        self._is_prefill = self._used == tokens
        assert self._is_prefill or tokens == 1, "neither a prefill nor one token a row"
        slots_S = torch.arange(self._used, device=positions_BT.device)
        self._mask_B1TS = slots_S <= positions_BT[:, None, :, None]
        return self

    def layer(self, index: int) -> Attend:
        return partial(self._attend, index)

    def keep_rows(self, rows: Tensor) -> None:
        """Replaces row i by the old row `rows[i]` (int64). This drops finished rows, or repeats the row of a prompt."""
        for store in (self._keys, self._values):
            for layer, kept in enumerate(store):  # one at a time, so that never two caches are held
                store[layer] = None if kept is None else kept[rows]

    def _attend(self, index: int, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, window: int | None = None) -> Tensor:
        keys_BKSd, values_BKSd = self._keys[index], self._values[index]
        assert keys_BKSd is not None and values_BKSd is not None, "a layer without kv_cache_shape attends"
        keys_BKSd[self._rows_B1, :, self._positions_BT] = k_BTKd.to(keys_BKSd.dtype)
        values_BKSd[self._rows_B1, :, self._positions_BT] = v_BTKd.to(values_BKSd.dtype)
        if self._is_prefill:  # padding is on the right, so plain causal attention is exact and needs no mask
            return causal_attention(q_BTHd, k_BTKd, v_BTKd, window)
        # With one token per row, the query heads of a group act as queries of one head, whose keys are read once.
        k, v = keys_BKSd[:, :, : self._used], values_BKSd[:, :, : self._used]
        q_BKGd = q_BTHd[:, 0].unflatten(1, (k.shape[1], -1))
        seen_B1TS = self._mask_B1TS
        if window is not None:
            slots_S = torch.arange(self._used, device=q_BTHd.device)
            seen_B1TS = seen_B1TS & (slots_S > self._positions_BT[:, None, :, None] - window)
        return scaled_dot_product_attention(q_BKGd, k, v, attn_mask=seen_B1TS).flatten(1, 2)[:, None]
