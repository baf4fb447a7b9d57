"""Winogrande: which of two names a sentence means, judged by how likely it then goes on (Sakaguchi et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlit.data.sources import HuggingFaceSource
from lnlit.errors import UserError
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.benchmark import RowsTask
from lnlit.eval.tasks.multiple_choice import GOLD, choices_of, first_best, gold_of
from lnlit.interfaces import Continuations, Likelihood, LikelihoodTask, Source

_BLANK = "_"


class Winogrande(RowsTask, LikelihoodTask):
    """Sentences with a blank and two names that may fill it. Each name is put into the context, and the likelihoods of
    the same rest are compared.

    Rows have `sentence`, `option1`, `option2` and `answer` (1 or 2), or `context_options`, `continuation` and `gold`.

    Args:
        source: The rows. By default the validation set of Winogrande XL on the Hugging Face hub.
    """

    def public(self) -> Source:
        return HuggingFaceSource("allenai/winogrande", "validation", name="winogrande_xl")

    def question(self, row: Mapping[str, Any]) -> Continuations:
        if "context_options" in row:
            contexts, rest = choices_of(row, "context_options"), text_of(row, "continuation")
            gold = gold_of(row, GOLD, len(contexts))
        else:
            before, blank, rest = text_of(row, "sentence").partition(_BLANK)
            if not blank:
                raise UserError(f"sentence: got {row['sentence']!r:.80}; expected a text with one blank, {_BLANK!r}.")
            contexts = [before + text_of(row, name) for name in ("option1", "option2")]
            answers = ("1", "2")
            if str(row.get("answer")) not in answers:
                raise UserError(f"answer: got {row.get('answer')!r:.80}; expected 1 or 2.")
            gold = answers.index(str(row["answer"]))
        continuation = f" {rest.strip()}"
        return Continuations(
            key_of(*contexts, continuation), contexts, [continuation] * len(contexts), {**row, GOLD: gold}
        )

    def values(self, question: Continuations, likelihoods: Sequence[Likelihood]) -> Mapping[str, float]:
        return {"acc": float(first_best([each.log_prob for each in likelihoods]) == question.row[GOLD])}
