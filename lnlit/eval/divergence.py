"""How differently two models would go on at each token of the same answers.

Shape suffixes: T tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lnlit.errors import UserError
from lnlit.eval.answers import AnswerFile
from lnlit.eval.intervals import Mean, mean_of_numbers, mean_of_shares
from lnlit.models.decoder import Decoder

#: Rows of logits that are compared at once.
_ROWS = 64


@dataclass(frozen=True)
class Said:
    """A prompt and its answer as tokens. `of` is a digest of both, `question` the key of what was asked."""

    question: str
    of: str
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]


@dataclass(frozen=True)
class Divergence:
    """The KL divergence of a model from another one in nats per token, and the share of tokens at which both find the
    same token most likely, both as means over questions."""

    kl: Mean
    agreement: Mean
    tokens: int


def diverge(
    answers: Sequence[Said],
    parent: Callable[[], Decoder],
    child: Callable[[], Decoder],
    found: AnswerFile,
    per_round: int,
    what: str,
) -> Divergence:
    """Compares two models on all answers, of which the file may have some already.

    Args:
        parent: Loads the model whose distribution is the reference, which happens only if something is lacking.
        child: Loads the other one.
        found: The file to keep the numbers of each answer in.
        per_round: The number of answers between two writes to disk.
        what: A word or two for the progress report.
    """
    for part in found.rounds(answers, lambda each: each.of, per_round, what, "answer"):
        found.append([_entry(each, *kl_and_agreement(parent(), child(), each)) for each in part])
    rows: list[dict[str, Any]] = [found.found[each.of] for each in answers]
    kl = mean_of_numbers([row["kl"] for row in rows])
    return Divergence(
        kl if kl.low is None else replace(kl, low=max(kl.low, 0.0)),  # no divergence is below 0
        mean_of_shares([row["agreement"] for row in rows], len(rows)),
        sum(row["tokens"] for row in rows),
    )


@torch.no_grad()
def kl_and_agreement(parent: Decoder, child: Decoder, said: Said) -> tuple[float, float]:
    """(mean KL divergence in nats, share of equal most likely tokens) over the tokens of an answer."""
    ones_TV, others_TV = (_logits(decoder, said) for decoder in (parent, child))
    kl = same = 0.0
    for start in range(0, len(ones_TV), _ROWS):
        p_TV, q_TV = (side_TV[start : start + _ROWS].float().log_softmax(-1) for side_TV in (ones_TV, others_TV))
        kl += float((p_TV.exp() * (p_TV - q_TV)).sum())
        same += int((p_TV.argmax(-1) == q_TV.argmax(-1)).sum())
    return kl / len(ones_TV), same / len(ones_TV)


def _logits(decoder: Decoder, said: Said) -> Tensor:
    tokens = torch.tensor([[*said.prompt_ids, *said.answer_ids[:-1]]], device=decoder.embed_tokens.weight.device)
    first = len(said.prompt_ids) - 1

    def head(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
        return nn.functional.linear(hidden_BTD[0, first:], weight_VD)

    return decoder(tokens, read_out=head)


def _entry(said: Said, kl: float, agreement: float) -> dict[str, Any]:
    if not math.isfinite(kl):
        raise UserError(
            f"question {said.question}: the KL divergence is no finite number; are a model's weights whole?"
        )
    tokens = len(said.answer_ids)
    return {"question": said.question, "of": said.of, "tokens": tokens, "kl": kl, "agreement": agreement}
