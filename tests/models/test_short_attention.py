"""Batched attention of short documents equals torch's, document by document, forward and backward."""

import pytest
import torch

from lnlit.models.causal_attention import causal_attention
from lnlit.models.kernels import SDPAKernel, make_segments
from lnlit.models.short_attention import MAX_LENGTH


@pytest.mark.parametrize("lengths", [(7, 16, 33, 1, 3), (MAX_LENGTH, 5, MAX_LENGTH + 1, 40), (300, 300), (60,)])
@pytest.mark.parametrize(("kv_heads", "window"), [(1, None), (2, None), (6, None), (2, 1), (2, 20), (6, 100)])
def test_outputs_and_gradients_equal_one_call_per_document(lengths, kv_heads, window):
    generator = torch.Generator().manual_seed(sum(lengths))
    shapes = [(1, sum(lengths), heads, 8) for heads in (6, kv_heads, kv_heads)]
    inputs = [torch.randn(s, generator=generator, requires_grad=True) for s in shapes]
    weight = torch.randn(shapes[0], generator=generator)
    out = SDPAKernel().attend(*inputs, make_segments(lengths, torch.device("cpu")), window)
    pieces = zip(*(x.split(lengths, dim=1) for x in inputs), strict=True)
    expected = torch.cat([causal_attention(*piece, window) for piece in pieces], dim=1)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
    ours = torch.autograd.grad((out * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_gradients_are_right_in_double_precision(window):
    inputs = [torch.randn(1, 13, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    segments = make_segments((5, 8), torch.device("cpu"))
    kernel = SDPAKernel()
    assert torch.autograd.gradcheck(lambda q, k, v: kernel.attend(q, k, v, segments, window), inputs)
