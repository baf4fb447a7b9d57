"""Token cross-entropy that never holds all logits.

Shape suffixes: N loss positions, C positions of one chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Positions per chunk: one chunk of fp32 logits is the largest tensor alive (512 x 49152 x 4 bytes = 96 MiB).
CHUNK_SIZE = 512


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Summed cross-entropy of `softmax(hidden @ weight.T)` against `labels`, in nats, fp32 scalar.

    Gradients are computed chunk by chunk in the forward pass, so memory is one chunk of logits plus the gradients
    themselves, and backward is a multiplication. Under autocast the products run in its dtype; softmax and the weight
    gradient's accumulation are fp32. An empty `hidden_ND` gives 0 with zero gradients.
    """
    if not torch.is_grad_enabled():  # the function below would still compute gradients
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ND, compute_VD = hidden_ND.to(dtype), weight_VD.detach().to(dtype)
    else:
        compute_VD = weight_VD.detach()
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, compute_VD, labels_N, chunk_size)  # type: ignore[return-value]


def _loss_and_gradient(logits_CV: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor]:
    """(summed loss, d loss / d logits in the logits' dtype): softmax minus the one-hot target."""
    log_probs_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
    loss = -log_probs_CV.gather(1, labels_C[:, None]).sum()
    one = torch.ones((), dtype=torch.float32, device=labels_C.device)
    grad_CV = log_probs_CV.exp_().scatter_add_(1, labels_C[:, None], -one.expand(len(labels_C), 1))
    return loss, grad_CV.to(logits_CV.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, compute_VD: Tensor, labels_N: Tensor, chunk_size: int
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        loss = hidden_ND.new_zeros((), dtype=torch.float32)
        grad_hidden_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        for start in range(0, len(labels_N), chunk_size):
            hidden_CD, labels_C = hidden_ND[start : start + chunk_size], labels_N[start : start + chunk_size]
            chunk_loss, grad_CV = _loss_and_gradient(hidden_CD @ compute_VD.T, labels_C)
            loss += chunk_loss
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, compute_VD, out=grad_hidden_ND[start : start + chunk_size])
            if grad_weight_VD is not None:
                grad_weight_VD += grad_CV.T @ hidden_CD
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> Any:  # type: ignore[override]
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        hidden = None if grad_hidden_ND is None else grad_hidden_ND * grad_loss
        weight = None if grad_weight_VD is None else (grad_weight_VD * grad_loss).to(ctx.weight_dtype)
        return hidden, weight, None, None, None
