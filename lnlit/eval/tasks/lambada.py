"""LAMBADA: the last word of a passage, which only its whole tells (Paperno et al. 2016; OpenAI's version)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.benchmark import RowsTask
from lnlit.interfaces import Continuations, Likelihood, LikelihoodTask, Source


class Lambada(RowsTask, LikelihoodTask):
    """Passages without their last word. `acc` counts the words that the model would say itself, `log_prob` is the
    word's mean log-probability in nats, and `perplexity` that of words.

    Rows have `text`, or `context` and `continuation`.

    Args:
        source: The rows. By default the test set of `EleutherAI/lambada_openai` on the Hugging Face hub.
    """

    def public(self) -> Source:
        return HuggingFaceSource("EleutherAI/lambada_openai", "test", name="default")

    def question(self, row: Mapping[str, Any]) -> Continuations:
        if "continuation" in row:
            context, word = text_of(row, "context"), text_of(row, "continuation")
        else:
            context, _, word = text_of(row, "text").rpartition(" ")
            if not context:
                raise UserError(
                    f"text: got {row['text']!r:.80}; expected several words, the last of which is asked for."
                )
        continuation = f" {word}"
        return Continuations(key_of(context, continuation), context, [continuation], row)

    def values(self, question: Continuations, likelihoods: Sequence[Likelihood]) -> Mapping[str, float]:
        (word,) = likelihoods
        return {"acc": float(word.is_greedy), "log_prob": word.log_prob}

    def totals(self, values: Mapping[str, Sequence[float]]) -> Mapping[str, float]:
        return {"perplexity": math.exp(-fmean(values["log_prob"]))}
