"""How likely whole texts are: perplexity per word and byte, and bits per byte."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lnlit.data.sources import HuggingFaceSource
from lnlit.eval.protocol import key_of, text_of
from lnlit.eval.tasks.benchmark import RowsTask
from lnlit.interfaces import Continuations, Likelihood, LikelihoodTask, Source, Windows

_WORDS, _BYTES = "words", "bytes"


class Perplexity(RowsTask, LikelihoodTask):
    """Texts, each read from its beginning to its end in windows of the model's context. `perplexity` is per token, and
    so depends on the tokenizer; models with different ones are compared by `word_perplexity`, `byte_perplexity` or
    `bits_per_byte`. A text's numbers are its nats, tokens, words and bytes.

    Args:
        source: The rows, one text each, under `text`.
        window: Tokens that the model reads at once. Null is its context.
        stride: New tokens of each further window. Null is `window`, the fastest.
    """

    #: The key of a row that holds the text.
    TEXT_KEY: ClassVar[str] = "text"

    def __init__(
        self,
        source: Source | None = None,
        rows: int | None = None,
        window: int | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__(source, rows)
        self.windows = Windows(window, stride)

    def question(self, row: Mapping[str, Any]) -> Continuations:
        text = text_of(row, self.TEXT_KEY)
        others = {key: value for key, value in row.items() if key != self.TEXT_KEY}
        # Words and bytes are those of the text as it is in the row, whatever the model is shown.
        counts = {_WORDS: len(re.split(r"\s+", text)), _BYTES: len(text.encode())}
        return Continuations(key_of(text), "", [self.shown(text)], {**others, **counts}, windows=self.windows)

    def values(self, question: Continuations, likelihoods: Sequence[Likelihood]) -> Mapping[str, float]:
        (whole,) = likelihoods
        counts = {name: float(question.row[name]) for name in (_WORDS, _BYTES)}
        return {"nats": -whole.log_prob, "tokens": float(whole.tokens), **counts}

    def totals(self, values: Mapping[str, Sequence[float]]) -> Mapping[str, float]:
        nats, tokens, words, size = (math.fsum(values[name]) for name in ("nats", "tokens", _WORDS, _BYTES))
        per_unit = {"perplexity": nats / tokens, "word_perplexity": nats / words, "byte_perplexity": nats / size}
        return {**{name: _exp(value) for name, value in per_unit.items()}, "bits_per_byte": nats / size / math.log(2)}

    def shown(self, text: str) -> str:
        """The text as the model reads it."""
        return text


def _exp(value: float) -> float:
    """The exponential, infinite where it is too large."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


class WikiText(Perplexity):
    """Articles of WikiText-2 (Merity et al. 2016), of which the model reads the text before it was tokenised; words and
    bytes are counted in the tokenised text, as in EleutherAI's harness.

    Args:
        source: The rows, one article each under `page`. By default the test set of `EleutherAI/wikitext_document_level`
            on the Hugging Face hub.
    """

    TEXT_KEY = "page"

    def public(self) -> Source:
        return HuggingFaceSource("EleutherAI/wikitext_document_level", "test", name="wikitext-2-raw-v1")

    def shown(self, text: str) -> str:
        for pattern, replacement in _DETOKENISED:
            text = re.sub(pattern, replacement, text)
        return text


#: What undoes WikiText's tokenisation, in this order (lm-eval 0.4.13).
_DETOKENISED = [
    (r"s '", r"s'"),
    (r" @-@ ", r"-"),
    (r" @,@ ", r","),
    (r" @\.@ ", r"."),
    *((rf" {mark} ", rf"{mark[-1]} ") for mark in (":", ";", r"\.", "!", r"\?", ",")),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", r"===="),
    (r"= = =", r"==="),
    (r"= =", r"=="),
    (r" ° ", r"°"),
    (r" \n", r"\n"),
    (r"\n ", r"\n"),
    (r" N ", r" 1 "),
    (r" 's", r"'s"),
]
