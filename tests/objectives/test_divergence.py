"""The shared-head identity against what it replaces: log-probabilities of both models over the whole vocabulary."""

import pytest
import torch

from lnlit.objectives import divergence
from lnlit.objectives.divergence import (
    cross_entropy,
    log_normalizer,
    mean_weight,
    top_k_agreement,
    top_tokens,
)

N, D, V = 37, 16, 5000


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    """37 positions in chunks of 16, 5000 entries in tiles of 1024: neither divides."""
    monkeypatch.setattr(divergence, "ROWS", 16)


def states(dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(parent's hidden states, a child's nearby, head)."""
    generator = torch.Generator().manual_seed(0)
    parent, noise = torch.randn(2, N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64) * scale
    return parent.to(dtype), (parent + 0.3 * noise).to(dtype), weight.to(dtype)


def divergence_by_identity(parent: torch.Tensor, child: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    log_N = log_normalizer(parent, weight)
    mean = mean_weight(parent, weight, log_N)
    return cross_entropy(log_normalizer(child, weight), child, mean) - cross_entropy(log_N, parent, mean)


def direct(parent: torch.Tensor, child: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    p, q = ((hidden.double() @ weight.double().T).log_softmax(-1) for hidden in (parent, child))
    return (p.exp() * (p - q)).sum(-1)


def test_kl_in_fp64_is_the_direct_kl():
    parent, child, weight = states(torch.float64)
    expected = direct(parent, child, weight)
    assert expected.min() > 1e-2
    assert (divergence_by_identity(parent, child, weight) - expected).abs().max() <= 1e-10


def test_kl_of_a_hidden_state_with_itself_is_exactly_zero():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        parent, _, weight = states(dtype)
        assert not divergence_by_identity(parent, parent, weight).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_operands_lose_nothing_more(dtype):
    """Products of bfloat16 numbers are summed up unrounded; the KL is that of the rounded states in fp64."""
    parent, child, weight = states(dtype)
    found = divergence_by_identity(parent, child, weight)
    assert found.dtype == torch.float32
    assert (found - direct(parent, child, weight)).abs().max() <= 2e-5


def test_the_global_precision_of_products_is_left_as_it_was():
    before = torch.get_float32_matmul_precision()
    parent, _, weight = states(torch.bfloat16)
    mean_weight(parent, weight, log_normalizer(parent, weight))
    assert torch.get_float32_matmul_precision() == before
    full, exact = parent.float() @ weight.float().T * 1.001, parent.double() @ weight.double().T * 1.001
    assert (full - exact).abs().max() < 1e-4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 60.0])
def test_log_normalizer_at_any_size_of_logits(scale):
    """60: logits of several hundred, whose exponentials overflow."""
    parent, _, weight = states(torch.float32, scale)
    expected = (parent.double() @ weight.double().T).logsumexp(-1)
    assert (expected.max() > 200) == (scale == 60.0)
    assert torch.allclose(log_normalizer(parent, weight).double(), expected, rtol=1e-6, atol=1e-5)
    shifted = torch.cat([parent, torch.full((N, 1), -500.0)], 1), torch.cat([weight, torch.ones(V, 1)], 1)
    assert torch.allclose(log_normalizer(*shifted).double(), expected - 500, rtol=1e-6, atol=1e-3)


def test_mean_weight_is_the_expected_row_of_the_head():
    parent, _, weight = states(torch.float64)
    expected = (parent @ weight.T).softmax(-1) @ weight
    assert (mean_weight(parent, weight, log_normalizer(parent, weight)) - expected).abs().max() <= 1e-12


def test_language_modelling_loss_is_torchs_cross_entropy():
    _, child, weight = states(torch.float32)
    labels = torch.arange(N) * 131 % V
    expected = torch.nn.functional.cross_entropy(child @ weight.T, labels, reduction="none")
    found = cross_entropy(log_normalizer(child, weight), child, weight[labels])
    assert (found - expected).abs().max() <= 1e-5


def test_nan_stays_nan():
    _, child, weight = states(torch.float32)
    child[5, 3] = float("nan")
    assert log_normalizer(child, weight).isnan().nonzero().tolist() == [[5]]


def test_top_tokens_and_their_agreement():
    parent, child, weight = states(torch.float32)
    tops = [top_tokens(hidden, weight, 4) for hidden in (parent, child)]
    for hidden, top in zip((parent, child), tops, strict=True):
        assert torch.equal(top.sort().values, (hidden @ weight.T).topk(4).indices.sort().values)
    shared = [len(set(a) & set(b)) / 4 for a, b in zip(tops[0].tolist(), tops[1].tolist(), strict=True)]
    assert top_k_agreement(*tops).tolist() == shared
    assert 0 < sum(shared) < N
