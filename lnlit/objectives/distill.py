"""Knowledge distillation: the divergence from a teacher's predictions (Llama-Nemotron section 2.2).

Shape suffixes: N loss positions, C positions of one chunk, D hidden, E the teacher's hidden,
V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lnlit.objectives.chunked_head import head_logits, product_dtype, sum_dtype, through_head
from lnlit.objectives.vocabulary import Vocabulary, own_part

#: Positions per chunk. Three chunks of fp32 logits are alive at once: the teacher's, the student's, and a difference.
CHUNK_SIZE = 256


class Distilled(NamedTuple):
    """Sums over positions, fp32 scalars. Only `loss` is differentiable."""

    loss: Tensor  # kl_weight * kl + lm_weight * lm
    kl: Tensor  # the divergence
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
    beta: float = 0.0,
) -> Distilled:
    """A divergence of student from teacher and cross-entropy against `labels` (a negative label: none), in nats, in one
    pass.

    The divergence is KL(teacher || student) for `beta` 0, KL(student || teacher) for 1, and between these the
    generalised Jensen-Shannon divergence beta KL(p || m) + (1 - beta) KL(q || m) of the teacher's p and the student's q
    with m = beta p + (1 - beta) q (arXiv 2306.13649, equation 1). That goes to 0 towards both ends.

    At temperature t both models' logits are divided by t and the divergence is multiplied by t^2, which keeps the size
    of its gradient (Hinton et al. 2015, section 2). The teacher gets no gradient. Neither model's logits ever exist
    for more than a chunk of positions; memory, autocast and empty input: see `through_head`.
    """
    dtype, rounded = product_dtype(hidden_ND), torch.is_grad_enabled()
    (weight_VD, vocabulary), (teacher_VE, _) = own_part(weight_VD), own_part(teacher_weight_VE.detach())
    teacher_NE, teacher_VE = teacher_hidden_NE.detach().to(dtype), teacher_VE.to(dtype)

    def objective(logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        teacher_CV = head_logits(teacher_NE[chunk], teacher_VE, rounded)
        kl, lm, grad_CV = _terms_and_gradient(
            logits_CV, teacher_CV, labels_N[chunk], kl_weight, lm_weight, temperature, beta, vocabulary
        )
        return torch.stack([kl_weight * kl + lm_weight * lm, kl, lm]), grad_CV

    loss, terms = through_head(hidden_ND, weight_VD, objective, 3, chunk_size, vocabulary)
    return Distilled(loss, terms[1], terms[2])


def _terms_and_gradient(
    logits_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor,
    kl_weight: float,
    lm_weight: float,
    temperature: float,
    beta: float,
    vocabulary: Vocabulary,
) -> tuple[Tensor, Tensor, Tensor]:
    """(kl, lm, d (kl_weight * kl + lm_weight * lm) / d logits in their dtype), with as few buffers as it takes.

    With q and p the student's and teacher's softmax at temperature t: d (t^2 kl) / d logits = t (q - p) for `beta` 0,
    and for another divergence D with g = dD / dq, t q (g - sum q g).
    """
    dtype = sum_dtype(logits_CV)
    log_p_CV = _log_softmax(teacher_CV, temperature, vocabulary)
    log_q_CV = _log_softmax(logits_CV, temperature, vocabulary)
    if beta:
        kl, slope_CV = _divergence(log_p_CV, log_q_CV, beta, vocabulary)
    else:
        p_CV = log_p_CV.exp()
        kl = vocabulary.total(log_p_CV.sub_(log_q_CV).mul_(p_CV).sum())
        slope_CV = p_CV.neg_()
    kl = kl * temperature**2
    own_log_q_CV = log_q_CV if temperature == 1.0 else _log_softmax(logits_CV, 1.0, vocabulary)
    has_label_C, label_C = labels_C >= 0, labels_C.clamp(min=0)
    lm = -(vocabulary.pick(own_log_q_CV, label_C) * has_label_C).sum()
    own_q_CV = own_log_q_CV.exp_()
    q_CV = own_q_CV if temperature == 1.0 else log_q_CV.exp_()
    grad_CV = (slope_CV.mul_(q_CV) if beta else slope_CV.add_(q_CV)).mul_(kl_weight * temperature)
    if lm_weight:
        share_C = has_label_C.to(dtype) * lm_weight
        vocabulary.add(grad_CV.addcmul_(own_q_CV, share_C[:, None]), label_C, -share_C)
    return kl, lm, grad_CV.to(logits_CV.dtype)


def _divergence(log_p_CV: Tensor, log_q_CV: Tensor, beta: float, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """(the divergence D, g - sum q g with g = dD / dq) for a `beta` above 0. `log_p_CV` is overwritten."""
    q_CV = log_q_CV.exp()
    if beta == 1:
        log_ratio_CV = log_p_CV.neg_().add_(log_q_CV)
        kl_C = vocabulary.total(torch.linalg.vecdot(q_CV, log_ratio_CV))
        return kl_C.sum(), log_ratio_CV.sub_(kl_C[:, None])
    log_m_CV = torch.logaddexp(log_p_CV + math.log(beta), log_q_CV + math.log1p(-beta))
    of_teacher = vocabulary.total((log_p_CV.exp() * log_p_CV.sub_(log_m_CV)).sum())
    slope_CV = log_m_CV.neg_().add_(log_q_CV).mul_(1 - beta)
    of_student_C = vocabulary.total(torch.linalg.vecdot(q_CV, slope_CV))
    return beta * of_teacher + of_student_C.sum(), slope_CV.sub_(of_student_C[:, None])


def _log_softmax(logits_CV: Tensor, temperature: float, vocabulary: Vocabulary) -> Tensor:
    dtype = sum_dtype(logits_CV)
    softened_CV = logits_CV if temperature == 1.0 else logits_CV.to(dtype) / temperature
    return vocabulary.log_softmax(softened_CV, dtype)
