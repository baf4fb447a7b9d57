"""Log-likelihoods of texts, with what they have in common computed once.

Token sequences become a tree, in which a beginning that several share is stored once: a question before its choices,
and worked examples before all questions of a subject. Each path of the tree is a document of one packed batch
(`TokenBatch.gather_index`), so any part and any attention kernel can be used, and nothing is padded. Logits are
computed only where a token is predicted.

Shape suffixes: T tokens of the tree, P places that predict a token, N predicted tokens, D hidden, V vocabulary, C
places of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.models.decoder import Decoder
from lnlit.objectives.chunked_head import CHUNK_SIZE, head_logits

#: Attention reads each document whole, however much of it is shared. This bounds the tokens that it reads, as a
#: multiple of the tokens that everything else computes.
_READ_PER_TOKEN = 8


@dataclass(frozen=True)
class Pair:
    """Token ids of a context, which is not empty, and of a continuation."""

    context: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True)
class PairLikelihood:
    """The sum of a continuation's log-probabilities in nats, whether each token is the most likely one at its place,
    and how many tokens of the context's beginning were left out."""

    log_prob: float
    is_greedy: bool
    left_out: int


def pair_likelihoods(decoder: Decoder, pairs: Iterable[Pair], batch_tokens: int) -> Iterator[PairLikelihood]:
    """The likelihood of each pair's continuation, in order.

    A context that is too long for the model loses its beginning.

    Args:
        decoder: The model, on any device and in any dtype. Log-probabilities are computed in fp32.
        pairs: Pairs, read as they are needed. Neighbours that begin alike are fast.
        batch_tokens: Tokens that go through the model together. A longer pair is a batch of its own.

    Raises:
        UserError: A context or a continuation is empty, or a continuation longer than the model's context.
    """
    if batch_tokens < 1:
        raise UserError(f"batch_tokens: expected a positive number, got {batch_tokens}.")
    context, batch = decoder.spec.context_length, _Batch()
    for pair in pairs:
        whole = [*pair.context, *pair.continuation]
        left_out = max(len(whole) - 1 - context, 0)
        check_pair(pair, context)
        tokens = whole[left_out:-1]
        path = batch.tree.shared(tokens)
        computed, read = len(batch.tree) + len(tokens) - len(path), batch.tree.read + len(tokens)
        full = computed > batch_tokens or read > _READ_PER_TOKEN * batch_tokens or len(batch.parts) >= batch_tokens
        if batch.parts and full:
            yield from batch.likelihoods(decoder)
            batch = _Batch()
            path = []
        batch.parts.append((batch.tree.add(tokens, path), pair.continuation, left_out))
    if batch.parts:
        yield from batch.likelihoods(decoder)


def check_pair(pair: Pair, context: int) -> None:
    """Raises `UserError` if the model, with so many tokens as its context, has nothing to predict or cannot see all of
    it."""
    if not pair.context or not pair.continuation:
        what = "continuation" if pair.context else "context"
        raise UserError(f"the {what} has no tokens, so there is nothing to compare. Leave it out.")
    if len(pair.continuation) > context:
        raise UserError(
            f"a continuation of {len(pair.continuation)} tokens is longer than the model's context of {context}. Read "
            "it in windows, as the task perplexity does, or leave it out."
        )


def check_finite(log_prob: float, where: str) -> None:
    """Raises `UserError` if a log-probability is no finite number."""
    if not math.isfinite(log_prob):
        raise UserError(
            f"{where}: its log-probability is {log_prob}, because the model's weights or activations are no finite "
            "numbers. Evaluate in float32; if that does not help, the model is broken."
        )


class _Tree:
    """Token sequences in which what they begin with in common is stored once. `tokens` and `positions` are those of the
    nodes, `paths` the nodes of each sequence that no other one continues, by its last node, and `read` their number of
    tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.paths: dict[int, list[int]] = {}
        self.read = 0
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def shared(self, tokens: Sequence[int]) -> list[int]:
        """The nodes of the longest beginning of `tokens` that is in the tree."""
        path: list[int] = []
        node = -1
        for token in tokens:
            found = self._children.get((node, token))
            if found is None:
                break
            path.append(node := found)
        return path

    def add(self, tokens: Sequence[int], path: list[int]) -> list[int]:
        """The nodes of `tokens`, which are added behind `path`, those that `shared` found."""
        if len(path) == len(tokens):
            return path
        if path and (continued := self.paths.pop(path[-1], None)):
            self.read -= len(continued)
        node = path[-1] if path else -1
        for position in range(len(path), len(tokens)):
            new = self._children[node, tokens[position]] = len(self.tokens)
            self.tokens.append(tokens[position])
            self.positions.append(position)
            path.append(node := new)
        self.paths[node] = path
        self.read += len(path)
        return path


class _Batch:
    """Sequences that go through the model together. Each part is a sequence's nodes, the tokens that its last nodes
    predict, and what was left out before it."""

    def __init__(self) -> None:
        self.tree = _Tree()
        self.parts: list[tuple[list[int], Sequence[int], int]] = []

    def likelihoods(self, decoder: Decoder) -> Iterator[PairLikelihood]:
        places = [node for path, predicted, _ in self.parts for node in path[-len(predicted) :]]
        labels = [token for _, predicted, _ in self.parts for token in predicted]
        log_probs_N, is_best_N = self._through(decoder, places, labels)
        sizes = [len(predicted) for _, predicted, _ in self.parts]
        log_probs, is_best = log_probs_N.double().cpu().split(sizes), is_best_N.cpu().split(sizes)
        for (_, _, left_out), own, best in zip(self.parts, log_probs, is_best, strict=True):
            yield PairLikelihood(own.sum().item(), bool(best.all()), left_out)

    @torch.no_grad()  # not inference mode: FSDP2's first forward pass cannot run in it
    @torch.compiler.set_stance("force_eager")  # compiled blocks would recompile for each batch
    def _through(self, decoder: Decoder, places: list[int], labels: list[int]) -> tuple[Tensor, Tensor]:
        """(log-probability of each label at its place, whether it is the most likely token), both [N]."""
        device = decoder.embed_tokens.weight.device
        tokens_T, positions_T, place_N, label_N = (
            torch.tensor(values, device=device) for values in (self.tree.tokens, self.tree.positions, places, labels)
        )
        place_P, index_N = place_N.unique(return_inverse=True)
        read = [*chain.from_iterable(self.tree.paths.values())]
        in_order = read == [*range(len(self.tree))]  # nothing is shared
        was_training = decoder.training
        decoder.eval()
        try:
            return decoder(
                tokens_T[None],
                positions_T[None],
                [len(path) for path in self.tree.paths.values()],
                None if in_order else torch.tensor(read, device=device),
                read_out=lambda hidden_BTD, weight_VD: label_log_probs(
                    hidden_BTD[0, place_P], weight_VD, index_N, label_N
                ),
            )
        finally:
            decoder.train(was_training)


def label_log_probs(
    hidden_PD: Tensor, weight_VD: Tensor, index_N: Tensor, label_N: Tensor, chunk_size: int = CHUNK_SIZE
) -> tuple[Tensor, Tensor]:
    """(the log-probability of each label at the place `index_N` among P, whether it is the most likely token), both
    [N], computed in fp32 or wider. Several labels may be at one place. Only one chunk of logits is held at a time."""
    log_probs_N = hidden_PD.new_empty(len(label_N), dtype=torch.promote_types(hidden_PD.dtype, torch.float32))
    is_best_N = torch.empty_like(label_N, dtype=torch.bool)
    for start in range(0, len(hidden_PD), chunk_size):
        logits_CV = head_logits(hidden_PD[start : start + chunk_size], weight_VD, rounded=False)
        here = ((index_N >= start) & (index_N < start + chunk_size)).nonzero()[:, 0]
        row, label = index_N[here] - start, label_N[here]
        log_probs_N[here] = logits_CV[row, label] - logits_CV.logsumexp(-1)[row]
        is_best_N[here] = logits_CV.argmax(-1)[row] == label
    return log_probs_N, is_best_N
