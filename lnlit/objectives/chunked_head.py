"""Losses of the output head that never hold all logits: gradients are computed chunk by chunk in the forward pass.

Shape suffixes: N positions, C positions of one chunk, D hidden, V vocabulary, K reported terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lnlit.objectives.vocabulary import WHOLE, Vocabulary

#: Positions per chunk: one chunk of fp32 logits is the largest tensor alive (512 x 49152 x 4 bytes = 96 MiB).
CHUNK_SIZE = 512

#: (logits_CV, the chunk's place in N) -> (summed terms_K, d terms[0] / d logits_CV in the logits' dtype).
Objective = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


def through_head(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    objective: Objective,
    num_terms: int,
    chunk_size: int = CHUNK_SIZE,
    vocabulary: Vocabulary = WHOLE,
) -> tuple[Tensor, Tensor]:
    """(loss, terms_K): `objective` of `hidden @ weight.T`, summed over positions; the loss is the first of the terms.

    Memory is one chunk of logits plus the gradients themselves, and backward is a multiplication. Only the loss is
    differentiable. Under autocast the products run in its dtype; the weight gradient's accumulation is fp32 (or fp64
    for fp64 weights). Without gradients, as in validation, logits are not rounded below fp32: see `head_logits`. An
    empty `hidden_ND` gives 0 with zero gradients. If ranks divide the vocabulary, `weight_VD` are this rank's rows,
    and `objective` gets logits of this part and returns terms of the whole.
    """
    trains = torch.is_grad_enabled()
    if not trains:  # the function below would still compute gradients
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
    dtype = product_dtype(hidden_ND)
    compute_VD = weight_VD.detach().to(dtype)
    return _ThroughHead.apply(  # type: ignore[return-value]
        hidden_ND.to(dtype), weight_VD, compute_VD, objective, num_terms, chunk_size, vocabulary, trains
    )


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of matrix products with `tensor`: that of autocast if it is on."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of softmax, losses and accumulated gradients: fp32 or wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def head_logits(hidden_CD: Tensor, weight_VD: Tensor, rounded: bool) -> Tensor:
    """`hidden @ weight.T` for operands of the same dtype. The result is in fp32 or wider, unless it is `rounded` to
    that dtype.

    A bf16 logit of 20 is off by up to 0.06, which averages out in a gradient but not in a measured divergence.
    """
    dtype = sum_dtype(hidden_CD)
    if rounded or hidden_CD.dtype == dtype:
        return hidden_CD @ weight_VD.T
    if hidden_CD.is_cuda:
        return torch.mm(hidden_CD, weight_VD.T, out_dtype=dtype)
    with torch.autocast(hidden_CD.device.type, enabled=False):
        return hidden_CD.to(dtype) @ weight_VD.to(dtype).T


class _ThroughHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        compute_VD: Tensor,
        objective: Objective,
        num_terms: int,
        chunk_size: int,
        vocabulary: Vocabulary,
        trains: bool,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        terms_K = hidden_ND.new_zeros(num_terms, dtype=sum_dtype(hidden_ND))
        grad_hidden_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=sum_dtype(weight_VD)) if wants_weight else None
        for start in range(0, len(hidden_ND), chunk_size):
            chunk = slice(start, start + chunk_size)
            hidden_CD = hidden_ND[chunk]
            chunk_terms_K, grad_CV = objective(head_logits(hidden_CD, compute_VD, trains), chunk)
            terms_K += chunk_terms_K
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, compute_VD, out=grad_hidden_ND[chunk])
            if grad_weight_VD is not None:
                grad_weight_VD += grad_CV.T @ hidden_CD
        if grad_hidden_ND is not None:
            vocabulary.total(grad_hidden_ND)
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(terms_K)
        return terms_K[0].clone(), terms_K

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> Any:  # type: ignore[override]
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        hidden = None if grad_hidden_ND is None else grad_hidden_ND * grad_loss
        weight = None if grad_weight_VD is None else (grad_weight_VD * grad_loss).to(ctx.weight_dtype)
        return hidden, weight, None, None, None, None, None, None
