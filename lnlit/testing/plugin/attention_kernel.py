"""Attention computed directly from its formula. Shape suffixes: N tokens of all documents, H query heads, K key/value
heads, d head size."""

from __future__ import annotations

from torch import Tensor, arange, repeat_interleave, tensor

from lnlit.interfaces import AttentionKernel, Segments


class Example(AttentionKernel):
    """Softmax with an explicit mask over all pairs of tokens: simple and slow."""

    @classmethod
    def unavailable(cls) -> str | None:
        return None  # say here what the machine lacks

    def attend(
        self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, segments: Segments, window: int | None = None
    ) -> Tensor:
        groups = q_BTHd.shape[2] // k_BTKd.shape[2]
        q_HNd = q_BTHd.flatten(0, 1).transpose(0, 1).float()
        k_HNd, v_HNd = (
            x_BTKd.flatten(0, 1).transpose(0, 1).repeat_interleave(groups, 0).float() for x_BTKd in (k_BTKd, v_BTKd)
        )
        documents = arange(len(segments.lengths), device=q_BTHd.device)
        document_N = repeat_interleave(documents, tensor(segments.lengths, device=q_BTHd.device))
        place_N = arange(len(document_N), device=q_BTHd.device)
        behind_NN = place_N[:, None] - place_N
        visible_NN = (document_N[:, None] == document_N) & (behind_NN >= 0) & (behind_NN < (window or len(place_N)))
        scores_HNN = (q_HNd @ k_HNd.mT / q_BTHd.shape[-1] ** 0.5).masked_fill(~visible_NN, float("-inf"))
        out_HNd = scores_HNN.softmax(-1) @ v_HNd
        return out_HNd.transpose(0, 1).reshape(q_BTHd.shape).to(q_BTHd.dtype)
