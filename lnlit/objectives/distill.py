"""Knowledge distillation: the divergence from a teacher's predictions, and the distance to its hidden states.

Llama-Nemotron section 2.2 (Puzzle's global distillation): `L = KL(teacher || student) + sum over layers (1 - cos)`.
Shape suffixes: B rows, T tokens, N loss positions, C positions of one chunk, D hidden, E the teacher's hidden,
V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lnlit.objectives.chunked_head import product_dtype, sum_dtype, through_head

#: Positions per chunk. Three chunks of fp32 logits are alive at once: the teacher's, the student's, and a difference.
CHUNK_SIZE = 256


class Distilled(NamedTuple):
    """Sums over positions, fp32 scalars. Only `loss` is differentiable."""

    loss: Tensor  # kl_weight * kl + lm_weight * lm
    kl: Tensor
    lm: Tensor


def linear_distillation(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    teacher_hidden_NE: Tensor,
    teacher_weight_VE: Tensor,
    labels_N: Tensor,
    kl_weight: float = 1.0,
    lm_weight: float = 0.0,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
) -> Distilled:
    """KL(teacher || student) and cross-entropy against `labels` (a negative label: none), in nats, in one pass.

    At temperature t both models' logits are divided by t and the divergence is multiplied by t^2, which keeps the size
    of its gradient (Hinton et al. 2015, section 2). The teacher gets no gradient. Neither model's logits ever exist
    for more than a chunk of positions; memory, autocast and empty input: see `through_head`.
    """
    dtype = product_dtype(hidden_ND)
    teacher_NE, teacher_VE = teacher_hidden_NE.detach().to(dtype), teacher_weight_VE.detach().to(dtype)

    def objective(logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        teacher_CV = teacher_NE[chunk] @ teacher_VE.T
        kl, lm, grad_CV = _terms_and_gradient(logits_CV, teacher_CV, labels_N[chunk], kl_weight, lm_weight, temperature)
        return torch.stack([kl_weight * kl + lm_weight * lm, kl, lm]), grad_CV

    loss, terms = through_head(hidden_ND, weight_VD, objective, 3, chunk_size)
    return Distilled(loss, terms[1], terms[2])


def _terms_and_gradient(
    logits_CV: Tensor, teacher_CV: Tensor, labels_C: Tensor, kl_weight: float, lm_weight: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(kl, lm, d (kl_weight * kl + lm_weight * lm) / d logits in their dtype), with as few buffers as it takes.

    With q and p the student's and teacher's softmax at temperature t: d (t^2 kl) / d logits = t (q - p).
    """
    dtype = sum_dtype(logits_CV)
    log_p_CV = _log_softmax(teacher_CV, temperature)
    p_CV = log_p_CV.exp()
    log_q_CV = _log_softmax(logits_CV, temperature)
    kl = log_p_CV.sub_(log_q_CV).mul_(p_CV).sum() * temperature**2
    own_log_q_CV = log_q_CV if temperature == 1.0 else _log_softmax(logits_CV, 1.0)
    has_label_C1 = (labels_C >= 0)[:, None]
    label_C1 = labels_C.clamp(min=0)[:, None]
    lm = -(own_log_q_CV.gather(1, label_C1) * has_label_C1).sum()
    own_q_CV = own_log_q_CV.exp_()
    q_CV = own_q_CV if temperature == 1.0 else log_q_CV.exp_()
    grad_CV = p_CV.neg_().add_(q_CV).mul_(kl_weight * temperature)
    if lm_weight:
        share_C1 = has_label_C1.to(dtype) * lm_weight
        grad_CV.addcmul_(own_q_CV, share_C1).scatter_add_(1, label_C1, -share_C1)
    return kl, lm, grad_CV.to(logits_CV.dtype)


def _log_softmax(logits_CV: Tensor, temperature: float) -> Tensor:
    dtype = sum_dtype(logits_CV)
    softened_CV = logits_CV if temperature == 1.0 else logits_CV.to(dtype) / temperature
    return torch.log_softmax(softened_CV, dim=-1, dtype=dtype)


def cosine_distance(student_BTD: Tensor, teacher_BTD: Tensor, counts_BT: Tensor) -> Tensor:
    """Sum over the positions where `counts` is true of `1 - cos(student, teacher)`, fp32 scalar.

    The gradient is computed in the forward pass, so the teacher's states are free to go at once.
    """
    if not torch.is_grad_enabled():
        student_BTD = student_BTD.detach()
    return _CosineDistance.apply(student_BTD, teacher_BTD.detach(), counts_BT)  # type: ignore[return-value]


class _CosineDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_BTD: Tensor, teacher_BTD: Tensor, counts_BT: Tensor) -> Tensor:
        dtype = sum_dtype(student_BTD)
        student, length_BT1 = _unit(student_BTD.to(dtype))
        teacher, _ = _unit(teacher_BTD.to(dtype))
        cosine_BT1 = (student * teacher).sum(-1, keepdim=True)
        counts_BT1 = counts_BT[..., None]
        if ctx.needs_input_grad[0]:  # d cos / d s = (t / |t| - cos s / |s|) / |s|
            grad_BTD = student.mul_(cosine_BT1).sub_(teacher).mul_(counts_BT1 / length_BT1)
            ctx.save_for_backward(grad_BTD.to(student_BTD.dtype))
        return ((1 - cosine_BT1) * counts_BT1).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> Any:  # type: ignore[override]
        (grad_BTD,) = ctx.saved_tensors
        return grad_BTD * grad_loss.to(grad_BTD.dtype), None, None


def _unit(states_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """(states of length 1, their lengths [B, T, 1]); a zero state stays zero."""
    length_BT1 = states_BTD.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    return states_BTD / length_BT1, length_BT1
