"""The block mask made from bounds is the one that torch makes from all pairs of tokens."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from lnlit.models import kernels
from lnlit.models.document_mask import document_mask
from lnlit.models.kernels import make_segments


def blocks(counts, indices) -> list[set[int]]:
    return [set(row[:count].tolist()) for count, row in zip(counts[0, 0], indices[0, 0], strict=True)]


def drawn(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.choice([1, 3, 127, 128, 129, 256, 300, draw.randint(1, 700)]) for _ in range(draw.randint(1, 9))]


@pytest.mark.parametrize("window", [None, 1, 128, 200])
@pytest.mark.parametrize("lengths", [[5], [128], [640], [128, 128], [1, 127, 300], *map(drawn, range(20))], ids=str)
def test_blocks_are_torchs(lengths, window):
    total = sum(lengths)
    found = document_mask(make_segments(lengths, torch.device("cpu")), total, window)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def mask(_batch, _head, query, key):
        return (query >= key) & (query - key < (window or total)) & (document[query] == document[key])

    expected = create_block_mask(mask, None, None, total, total, device="cpu")
    for kind in ("kv", "full_kv", "q", "full_q"):
        each = [blocks(getattr(m, f"{kind}_num_blocks"), getattr(m, f"{kind}_indices")) for m in (found, expected)]
        assert each[0] == each[1], kind
        for name in ("num_blocks", "indices"):
            one, other = (getattr(m, f"{kind}_{name}") for m in (found, expected))
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert found.shape == expected.shape and found.BLOCK_SIZE == expected.BLOCK_SIZE
    query, key = torch.meshgrid(torch.arange(total), torch.arange(total), indexing="ij")
    assert torch.equal(found.mask_mod(0, 0, query, key), mask(0, 0, query, key))


def test_it_takes_little_memory():
    """A row of 128k tokens, of which torch would compare 16 billion pairs."""
    mask = document_mask(make_segments([40_000, 1_000, 90_072], torch.device("cpu")), 131_072)
    assert mask.kv_indices.numel() == 1024**2


@pytest.mark.parametrize("window", [None, 50])
def test_attention_under_it_is_attention_within_documents(monkeypatch, window):
    """FlexAttention's forward pass, not compiled, which a CPU has; with three query heads to a key head."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(kernels, "_compiled_flex", lambda: flex_attention)
    segments = make_segments([3, 60, 130, 7], torch.device("cpu"))
    q, k, v = (torch.randn(2, 100, heads, 16) for heads in (6, 2, 2))
    both = (kernels.FlexKernel(), kernels.SDPAKernel())
    found, expected = (kernel.attend(q, k, v, segments, window) for kernel in both)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
