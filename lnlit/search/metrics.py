"""Metrics of how much quality a replaced block costs, which compare a child's final hidden states with the parent's.

A metric sees hidden states after the final norm, micro-batch by micro-batch and always in the same order. Of the parent
it keeps at most two vectors of hidden size per token (for top_k, k indices), never its logits.

Shape suffixes: B rows, T tokens, N = B * T positions, D hidden, V vocabulary, k most probable tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lnlit.interfaces import IGNORE
from lnlit.objectives.cosine import cosine_distance
from lnlit.objectives.divergence import (
    cross_entropy,
    log_normalizer,
    mean_weight,
    top_k_agreement,
    top_tokens,
)

MetricName = Literal["kl", "lm_loss", "hidden_cosine", "top_k", "accuracy"]
#: Metrics for which higher is better.
BIGGER_IS_BETTER = {"top_k", "accuracy"}


class Metric(ABC):
    """A comparison with its values by name. Call `observe` with the parent once, then `measure` with any number of
    children."""

    @abstractmethod
    def observe(self, parent: Iterable[Tensor]) -> None:
        """Keeps what is needed of the parent's hidden states, [B, T, D] each."""

    @abstractmethod
    def measure(self, child: Iterable[Tensor]) -> dict[str, float]:
        """Means over the text, by metric name."""


@dataclass(frozen=True)
class _Seen:
    """The parent's values of one micro-batch."""

    hidden_ND: Tensor
    mean_ND: Tensor
    entropy_N: Tensor


class Likelihood(Metric):
    """`kl`: KL(parent || child) of the next token, in nats, mean over all tokens (Puzzle section 4.2). `lm_loss`:
    cross-entropy with the true next token, mean over all tokens but each row's last. `hidden_cosine`: 1 - cosine of the
    hidden states. All three from one head product.
    """

    def __init__(self, weight_VD: Tensor, batches: Sequence[Tensor]) -> None:
        self.weight_VD, self.batches = weight_VD, batches
        self.seen: list[_Seen] = []

    def observe(self, parent: Iterable[Tensor]) -> None:
        for hidden_BTD in parent:
            hidden_ND = hidden_BTD.flatten(0, 1)
            log_N = log_normalizer(hidden_ND, self.weight_VD)
            mean_ND = mean_weight(hidden_ND, self.weight_VD, log_N)
            self.seen.append(_Seen(hidden_ND, mean_ND, cross_entropy(log_N, hidden_ND, mean_ND)))

    def measure(self, child: Iterable[Tensor]) -> dict[str, float]:
        kl = lm_loss = cosine = torch.zeros((), dtype=torch.float64)
        for tokens_BT, seen, hidden_BTD in zip(self.batches, self.seen, child, strict=True):
            hidden_ND = hidden_BTD.flatten(0, 1)
            log_N = log_normalizer(hidden_ND, self.weight_VD)
            kl = kl + _total(cross_entropy(log_N, hidden_ND, seen.mean_ND) - seen.entropy_N)
            next_BTD = self.weight_VD[tokens_BT[:, 1:]]
            log_BT = log_N.view(tokens_BT.shape)[:, :-1]
            lm_loss = lm_loss + _total(cross_entropy(log_BT, hidden_BTD[:, :-1], next_BTD))
            cosine = cosine + _total(cosine_distance(seen.hidden_ND, hidden_ND))
        positions = sum(tokens_BT.numel() for tokens_BT in self.batches)
        predicted = positions - sum(len(tokens_BT) for tokens_BT in self.batches)
        return {
            "kl": kl.item() / positions,
            "lm_loss": lm_loss.item() / predicted,
            "hidden_cosine": cosine.item() / positions,
        }


class HiddenCosine(Metric):
    """1 - cosine of the hidden states alone: without a head product, the cheapest."""

    def __init__(self) -> None:
        self.parent: list[Tensor] = []

    def observe(self, parent: Iterable[Tensor]) -> None:
        self.parent = list(parent)

    def measure(self, child: Iterable[Tensor]) -> dict[str, float]:
        pairs = zip(self.parent, child, strict=True)
        means = [cosine_distance(mine.flatten(0, 1), theirs.flatten(0, 1)) for mine, theirs in pairs]
        return {"hidden_cosine": torch.cat(means).double().mean().item()}


class TopK(Metric):
    """The share of the parent's `k` most probable tokens that are among the child's."""

    def __init__(self, weight_VD: Tensor, k: int) -> None:
        self.weight_VD, self.k = weight_VD, k
        self.parent: list[Tensor] = []

    def observe(self, parent: Iterable[Tensor]) -> None:
        self.parent = [self._top(hidden_BTD) for hidden_BTD in parent]

    def measure(self, child: Iterable[Tensor]) -> dict[str, float]:
        pairs = zip(self.parent, child, strict=True)
        shares = [top_k_agreement(tokens_Nk, self._top(hidden_BTD)) for tokens_Nk, hidden_BTD in pairs]
        return {"top_k": torch.cat(shares).double().mean().item()}

    def _top(self, hidden_BTD: Tensor) -> Tensor:
        return top_tokens(hidden_BTD.flatten(0, 1), self.weight_VD, self.k)


class Accuracy(Metric):
    """The share of multiple-choice questions whose likeliest continuation, per byte, is the right one.

    Row r of the tokens is one continuation of question `question[r]`, and `labels` holds the token to predict at each
    of its positions, `IGNORE` elsewhere. `right[q]` is the row of the right answer; `size[r]` is in bytes.
    """

    def __init__(
        self, weight_VD: Tensor, labels: Sequence[Tensor], question: Sequence[int], right: Sequence[int], size: Tensor
    ) -> None:
        self.weight_VD, self.labels = weight_VD, labels
        self.question, self.right, self.size = question, right, size

    def observe(self, parent: Iterable[Tensor]) -> None:
        """Does nothing, because the correct answers are known without the parent."""
        for _ in parent:
            pass

    def measure(self, child: Iterable[Tensor]) -> dict[str, float]:
        pairs = zip(self.labels, child, strict=True)
        likelihood_R = torch.cat([self._log_likelihood(*pair) for pair in pairs]) / self.size
        if likelihood_R.isnan().any():
            return {"accuracy": float("nan")}
        best: dict[int, int] = {}
        for row, question in enumerate(self.question):
            if question not in best or likelihood_R[row] > likelihood_R[best[question]]:
                best[question] = row
        hits = sum(best[question] == row for question, row in enumerate(self.right))
        return {"accuracy": hits / len(self.right)}

    def _log_likelihood(self, labels_BT: Tensor, hidden_BTD: Tensor) -> Tensor:
        counts_BT = labels_BT != IGNORE
        hidden_ND = hidden_BTD[counts_BT]
        loss_N = cross_entropy(
            log_normalizer(hidden_ND, self.weight_VD), hidden_ND, self.weight_VD[labels_BT[counts_BT]]
        )
        row_N = counts_BT.nonzero()[:, 0]
        total_B = torch.zeros(len(labels_BT), dtype=torch.float64, device=loss_N.device)
        return total_B.index_add(0, row_N, -loss_N.double()).cpu()


def _total(values: Tensor) -> Tensor:
    return values.double().sum().cpu()
