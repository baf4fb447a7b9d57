"""Texts as vectors, by a model's hidden states, to find those that say the same in other words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnlit.curation.settings import shared
from lnlit.errors import UserError

if TYPE_CHECKING:
    from lnlit.curation._near import Near


@dataclass(frozen=True)
class Embedding:
    """How texts become vectors: the mean over a text of the states that a model's output layer reads.

    Args:
        folder: Model folder with a tokenizer. A decoder that was trained to embed texts finds more than a language
            model.
        tokens: What is read of a text; the rest is cut off.
        threshold: The lowest cosine of two texts that count as the same. A judge is asked about them, if there is one.
        top: The number of questions that a judge is asked about at most.
    """

    folder: str
    tokens: int = 512
    threshold: float = 0.8
    top: int = 3

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1 or self.top < 1 or self.tokens < 1:
            raise UserError("Embedding: needs a threshold from -1 to 1, and tokens and top of 1 or more")

    def stated(self) -> dict[str, Any]:
        """All that its vectors depend on."""
        from lnlit.checkpoint.fingerprint import fingerprint

        return {**vars(self), "weights": fingerprint(self.folder)}

    def near(self, questions: Sequence[str], text: str) -> list[int]:
        """The numbers of the questions that are nearest to a text, as far as they reach the threshold."""
        found = self.index(questions).found(text, self.top, self.threshold)
        return [number for number, _ in found]

    def index(self, questions: Sequence[str]) -> Near:
        """The questions' vectors, which all tasks of a process share."""
        from lnlit.curation._near import Near  # torch, which steps that embed nothing do without

        settings = ["embedding", self.folder, self.tokens, id(questions), len(questions), questions[:1], questions[-1:]]
        return shared(settings, lambda: Near(self.folder, self.tokens, questions))
