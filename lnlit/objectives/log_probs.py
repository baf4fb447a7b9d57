"""Log-probabilities of given tokens behind the output head, without ever holding all logits.

Shape suffixes: N positions, C positions of one chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lnlit.objectives.chunked_head import CHUNK_SIZE, head_logits, product_dtype, sum_dtype
from lnlit.objectives.vocabulary import Vocabulary, own_part


class TokenLogProbs(NamedTuple):
    """Log-probs in nats, in fp32 or wider. Only `log_probs_N` is differentiable."""

    log_probs_N: Tensor
    entropy_N: Tensor  # of the whole distribution at each position


def linear_log_probs(
    hidden_ND: Tensor, weight_VD: Tensor, tokens_N: Tensor, temperature: float = 1.0, chunk_size: int = CHUNK_SIZE
) -> TokenLogProbs:
    """log softmax(hidden @ weight.T / temperature) at `tokens`: the distribution that a sampler at that temperature
    draws from.

    A loss of log-probs need not be a sum over tokens, so gradients cannot be computed in the forward pass as in
    `through_head`; the backward pass computes each chunk's logits again. Passes with and without gradients round in the
    same way, so that the ratio of a policy to itself is exactly 1.
    """
    dtype = product_dtype(hidden_ND)
    weight_VD, vocabulary = own_part(weight_VD)
    compute_VD = weight_VD.detach().to(dtype)
    found = _LinearLogProbs.apply(
        hidden_ND.to(dtype), weight_VD, compute_VD, tokens_N, temperature, chunk_size, vocabulary
    )
    return TokenLogProbs(*found)  # type: ignore[misc]


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        compute_VD: Tensor,
        tokens_N: Tensor,
        temperature: float,
        chunk_size: int,
        vocabulary: Vocabulary,
    ) -> tuple[Tensor, Tensor]:
        log_probs_N = hidden_ND.new_empty(len(hidden_ND), dtype=sum_dtype(hidden_ND))
        entropy_N = torch.empty_like(log_probs_N)
        for start in range(0, len(hidden_ND), chunk_size):
            chunk = slice(start, start + chunk_size)
            log_probs_CV = _log_softmax(hidden_ND[chunk], compute_VD, temperature, vocabulary)
            log_probs_N[chunk] = vocabulary.pick(log_probs_CV, tokens_N[chunk])
            entropy_N[chunk] = vocabulary.total(_entropy(log_probs_CV))
        ctx.save_for_backward(hidden_ND, compute_VD, tokens_N)
        ctx.weight_dtype, ctx.temperature, ctx.chunk_size = weight_VD.dtype, temperature, chunk_size
        ctx.vocabulary = vocabulary
        ctx.mark_non_differentiable(entropy_N)
        return log_probs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Any) -> Any:  # type: ignore[override]
        hidden_ND, compute_VD, tokens_N = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        weight_dtype = torch.promote_types(ctx.weight_dtype, torch.float32)
        grad_weight_VD = torch.zeros_like(compute_VD, dtype=weight_dtype) if wants_weight else None
        for start in range(0, len(hidden_ND), ctx.chunk_size):
            chunk = slice(start, start + ctx.chunk_size)
            # d log p[token] / d logits = (one-hot - p) / temperature
            share_C = grad_N[chunk] / ctx.temperature
            log_probs_CV = _log_softmax(hidden_ND[chunk], compute_VD, ctx.temperature, ctx.vocabulary)
            grad_CV = log_probs_CV.exp_().mul_(-share_C[:, None])
            ctx.vocabulary.add(grad_CV, tokens_N[chunk], share_C)
            grad_CV = grad_CV.to(hidden_ND.dtype)
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, compute_VD, out=grad_hidden_ND[chunk])
            if grad_weight_VD is not None:
                grad_weight_VD += grad_CV.T @ hidden_ND[chunk]
        if grad_hidden_ND is not None:
            ctx.vocabulary.total(grad_hidden_ND)
        weight = None if grad_weight_VD is None else grad_weight_VD.to(ctx.weight_dtype)
        return grad_hidden_ND, weight, None, None, None, None, None


def _log_softmax(hidden_CD: Tensor, compute_VD: Tensor, temperature: float, vocabulary: Vocabulary) -> Tensor:
    # CUDA gives fp32 logits for nothing; elsewhere they are rounded to the operands' dtype, as in any bf16 model
    logits_CV = head_logits(hidden_CD, compute_VD, rounded=not hidden_CD.is_cuda)
    dtype = sum_dtype(hidden_CD)
    if temperature != 1.0:
        logits_CV = logits_CV.to(dtype) / temperature
    return vocabulary.log_softmax(logits_CV, dtype)


def _entropy(log_probs_CV: Tensor) -> Tensor:
    """The entropy -sum p log p of each row as a batched product, without a third tensor of the vocabulary's size."""
    return -torch.linalg.vecdot(log_probs_CV.exp(), log_probs_CV)
