"""Token cross-entropy that never holds all logits.

Shape suffixes: N loss positions, C positions of one chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from lnlit.objectives.chunked_head import CHUNK_SIZE, sum_dtype, through_head
from lnlit.objectives.vocabulary import Vocabulary, own_part


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Summed cross-entropy of `softmax(hidden @ weight.T)` against `labels`, in nats, fp32 scalar.

    Memory, autocast, empty input and a divided vocabulary: see `through_head`. Softmax is fp32.
    """
    weight_VD, vocabulary = own_part(weight_VD)

    def objective(logits_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        loss, grad_CV = _loss_and_gradient(logits_CV, labels_N[chunk], vocabulary)
        return loss[None], grad_CV

    return through_head(hidden_ND, weight_VD, objective, 1, chunk_size, vocabulary)[0]


def _loss_and_gradient(logits_CV: Tensor, labels_C: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """(summed loss, d loss / d logits in the logits' dtype): softmax minus the one-hot target."""
    log_probs_CV = vocabulary.log_softmax(logits_CV, sum_dtype(logits_CV))
    loss = -vocabulary.pick(log_probs_CV, labels_C).sum()
    grad_CV = log_probs_CV.exp_()
    vocabulary.add(grad_CV, labels_C, grad_CV.new_full((len(labels_C),), -1.0))
    return loss, grad_CV.to(logits_CV.dtype)
