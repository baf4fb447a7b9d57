"""Log-probs of given completions under a decoder.

Shape suffixes: B rows, T positions, N positions with a label (row by row), D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lnlit.interfaces import IGNORE, TokenBatch
from lnlit.models.decoder import Decoder
from lnlit.objectives.log_probs import TokenLogProbs, linear_log_probs


def token_log_probs(decoder: Decoder, batch: TokenBatch, temperature: float = 1.0) -> TokenLogProbs:
    """The log-probs of all labels, [N]. The head is only computed at labels."""
    read_out = at_labels(batch, temperature)
    return decoder(batch.tokens, batch.positions, batch.lengths, batch.gather_index, read_out=read_out)


def at_labels(batch: TokenBatch, temperature: float) -> Callable[[Tensor, Tensor], TokenLogProbs]:
    """A function from final hidden states [B, T, D] and a head [V, D] to the log-probs of all labels, [N]."""
    has_label_BT = batch.labels != IGNORE
    labels_N = batch.labels[has_label_BT]

    def head(hidden_BTD: Tensor, weight_VD: Tensor) -> TokenLogProbs:
        return linear_log_probs(hidden_BTD[has_label_BT], weight_VD, labels_N, temperature)

    return head
