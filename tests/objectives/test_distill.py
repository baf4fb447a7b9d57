"""Distillation losses equal their definitions, in value and gradient, and never hold all logits."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lnlit.interfaces import IGNORE
from lnlit.objectives.cross_entropy import linear_cross_entropy
from lnlit.objectives.distill import linear_distillation

N, D, E, V = 37, 16, 24, 101


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    student = draw(N, D).requires_grad_(), draw(V, D).requires_grad_()
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[::5] = IGNORE
    return student, (draw(N, E) / 3, draw(V, E)), labels


def plain(student, teacher, labels, kl_weight, lm_weight, temperature, beta=0.0):
    """Textbook form on whole logits: F.kl_div of softened predictions, times t squared, and F.cross_entropy."""
    logits, target = student[0] @ student[1].T, teacher[0] @ teacher[1].T
    soft, soft_target = (torch.log_softmax(x / temperature, -1) for x in (logits, target))
    divergence = partial(F.kl_div, reduction="sum", log_target=True)
    if 0 < beta < 1:
        middle = (beta * soft_target.exp() + (1 - beta) * soft.exp()).log()
        kl = beta * divergence(middle, soft_target) + (1 - beta) * divergence(middle, soft)
    else:
        kl = divergence(soft_target, soft) if beta else divergence(soft, soft_target)
    kl = kl * temperature**2
    lm = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
    return kl_weight * kl + lm_weight * lm, kl, lm


@pytest.mark.parametrize("chunk_size", [1, 10, 37, 1000])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("kl", "lm", "temperature"), [(1, 0, 1), (1, 0.3, 1), (0.7, 0.5, 2.5), (0, 1, 3), (0, 0, 1)])
def test_value_and_gradient_equal_the_definition(chunk_size, beta, kl, lm, temperature):
    student, teacher, labels = case()
    ours = linear_distillation(*student, *teacher, labels, kl, lm, temperature, chunk_size, beta)
    expected = plain(student, teacher, labels, kl, lm, temperature, beta)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), atol=1e-10, rtol=1e-10)
    mine = torch.autograd.grad(3 * ours.loss, student)
    theirs = torch.autograd.grad(3 * expected[0], student, materialize_grads=True)
    for gradient, definition in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, definition, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
def test_the_divergence_is_trls(beta, temperature):
    from trl.experimental.gkd import GKDTrainer

    (hidden, weight), teacher, labels = case()
    ours = linear_distillation(hidden, weight, *teacher, labels, temperature=temperature, beta=beta)
    logits, target = hidden @ weight.T, teacher[0] @ teacher[1].T
    theirs = GKDTrainer.generalized_jsd_loss(logits, target, None, beta, temperature, "sum") * temperature**2
    torch.testing.assert_close(ours.loss, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_sampled_distributions_that_are_certain_stay_finite(beta):
    student, teacher, labels = case(torch.float32)
    hot = tuple(1e3 * tensor for tensor in teacher)
    result = linear_distillation(*student, *hot, labels, beta=beta)
    assert torch.isfinite(result.loss)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(result.loss, student))


def test_a_teacher_equal_to_the_student_leaves_nothing_to_learn():
    student, _, labels = case()
    result = linear_distillation(*student, *(tensor.detach() for tensor in student), labels)
    assert abs(result.kl) < 1e-12
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(result.loss, student))


def test_the_language_model_term_is_cross_entropy():
    student, teacher, labels = case()
    kept = labels != IGNORE
    expected = linear_cross_entropy(student[0][kept], student[1], labels[kept])
    result = linear_distillation(*student, *teacher, labels, 0.0, 1.0)
    torch.testing.assert_close(result.lm, expected.detach())
    for mine, theirs in zip(*(torch.autograd.grad(x, student) for x in (result.loss, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_positions_give_zero_and_zero_gradients():
    (hidden, weight), (teacher, teacher_weight), labels = case()
    result = linear_distillation(hidden[:0], weight, teacher[:0], teacher_weight, labels[:0])
    assert [term.item() for term in result] == [0.0] * 3
    assert all(not g.any() for g in torch.autograd.grad(result.loss, (hidden, weight)))


def test_nothing_reaches_the_teacher_and_only_the_loss_is_differentiable():
    student, teacher, labels = case()
    teacher = tuple(tensor.requires_grad_() for tensor in teacher)
    result = linear_distillation(*student, *teacher, labels)
    assert result.loss.requires_grad and not result.kl.requires_grad and not result.lm.requires_grad
    result.loss.backward()
    assert teacher[0].grad is None and teacher[1].grad is None


def test_confident_models_stay_finite():
    student, teacher, labels = case(torch.float32)
    hot = tuple(1e3 * tensor for tensor in teacher)
    result = linear_distillation(*student, *hot, labels)
    assert torch.isfinite(torch.stack(list(result))).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(result.loss, student))


def test_autocast_runs_products_in_bf16_and_stays_close():
    student, teacher, labels = case(torch.float32)
    exact = linear_distillation(*student, *teacher, labels)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_distillation(*student, *teacher, labels)
    assert ours.kl.dtype == torch.float32 and 1e-7 < abs(ours.kl - exact.kl) / exact.kl < 1e-2
    assert torch.autograd.grad(ours.loss, student[1])[0].dtype == torch.float32


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation makes."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [x for x in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(x, torch.Tensor)]
        self.most = max([self.most, *(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in made)])
        return result


def test_no_tensor_of_all_positions_by_the_vocabulary_ever_exists():
    student, teacher, labels = case()
    with LargestTensor() as largest:
        linear_distillation(*student, *teacher, labels, 1.0, 1.0, 2.0, chunk_size=4).loss.backward()
    assert largest.most == max(V * E, 4 * V) < N * V
    with LargestTensor() as largest:
        plain(student, teacher, labels, 1.0, 1.0, 2.0)[0].backward()
    assert largest.most >= N * V  # or the measure would see nothing


def test_without_gradients_a_divergence_is_not_lost_in_the_rounding_of_logits():
    """Operands of bf16, as under autocast, and predictions that are nearly the teacher's."""
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randn(64, 32, generator=generator).bfloat16(), torch.randn(200, 32, generator=generator).bfloat16()
    hidden = (teacher[0].float() + 0.01 * torch.randn(64, 32, generator=generator)).bfloat16()
    labels = torch.zeros(64, dtype=torch.long)

    def divergence() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return linear_distillation(hidden.float(), teacher[1].float(), *teacher, labels).kl.item()

    exact = [(x.double() @ teacher[1].double().T).log_softmax(-1) for x in (teacher[0], hidden)]
    expected = (exact[0].exp() * (exact[0] - exact[1])).sum().item()
    with torch.no_grad():
        assert divergence() == pytest.approx(expected, rel=1e-3)
    assert divergence() != pytest.approx(expected, rel=1e-1)  # training's rounding, on the same numbers
