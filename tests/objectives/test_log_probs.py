"""Log-probabilities behind the head equal their definition, and never hold all logits."""

import pytest
import torch

from lnlit.objectives.log_probs import linear_log_probs

N, D, V = 37, 16, 101


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (N,), generator=generator)


@pytest.mark.parametrize("chunk_size", [1, 10, 37, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_value_entropy_and_gradient_equal_the_definition(chunk_size, temperature):
    hidden, weight, tokens = case()
    ours = linear_log_probs(hidden, weight, tokens, temperature, chunk_size)
    whole = torch.log_softmax(hidden @ weight.T / temperature, -1)
    plain = whole.gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(ours.log_probs_N, plain, atol=1e-12, rtol=1e-12)
    entropy = torch.distributions.Categorical(logits=whole.detach()).entropy()
    torch.testing.assert_close(ours.entropy_N, entropy, atol=1e-12, rtol=1e-12)
    share = torch.linspace(-2, 3, N, dtype=torch.float64)  # a different gradient for each token
    mine = torch.autograd.grad((share * ours.log_probs_N.exp()).sum(), (hidden, weight))
    theirs = torch.autograd.grad((share * plain.exp()).sum(), (hidden, weight))
    for gradient, definition in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, definition, atol=1e-12, rtol=1e-12)


def test_a_pass_with_gradients_and_one_without_give_the_same_bits():
    hidden, weight, tokens = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        with_gradients = linear_log_probs(hidden, weight, tokens).log_probs_N
        with torch.no_grad():
            without = linear_log_probs(hidden, weight, tokens).log_probs_N
    assert with_gradients.dtype == torch.float32
    assert torch.equal(with_gradients.detach(), without)


def test_gradients_through_autocast_arrive_in_the_parameters_dtype():
    hidden, weight, tokens = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        linear_log_probs(hidden, weight, tokens).log_probs_N.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    expected = torch.autograd.grad(linear_log_probs(hidden, weight, tokens).log_probs_N.sum(), (hidden, weight))
    for gradient, definition in zip((hidden.grad, weight.grad), expected, strict=True):
        assert (gradient - definition).norm() < 0.02 * definition.norm()


def test_an_impossible_token_has_no_part_in_the_entropy():
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[0.0], [0.0], [-1e30]])
    result = linear_log_probs(hidden, weight, torch.tensor([0]))
    assert result.entropy_N.item() == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)


def test_no_positions_give_zero_gradients():
    hidden, weight, _ = case()
    result = linear_log_probs(hidden[:0], weight, torch.empty(0, dtype=torch.long))
    result.log_probs_N.sum().backward()
    assert weight.grad.abs().max() == 0
