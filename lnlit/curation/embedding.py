"""Texts as vectors, by a model's hidden states, to find those that say the same in other words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.formats import resolve
from lnlit.checkpoint.load import frozen_decoder
from lnlit.curation.settings import shared, stated
from lnlit.data.tokenizer import load_tokenizer
from lnlit.errors import UserError
from lnlit.models.device import accelerator


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
        return {**vars(self), "weights": fingerprint(self.folder)}

    def near(self, questions: Sequence[str]) -> Near:
        """An index of questions, which all tasks of a process share."""
        digest = hashlib.sha256("\0".join(questions).encode()).hexdigest()
        return shared(["embedding", stated(self), digest], lambda: Near(self, questions))


class Near:
    """The vectors of questions, to find those near to a text's.

    The mean of the questions' vectors is subtracted from all, because the states of language models have a large part
    in common that says nothing about a text.
    """

    def __init__(self, embedding: Embedding, questions: Sequence[str]) -> None:
        self.embedding = embedding
        self._decoder = frozen_decoder(resolve(embedding.folder), accelerator(), torch.float32)
        self._tokenizer = load_tokenizer(resolve(embedding.folder))
        plain_ND = torch.stack([self._mean(text) for text in questions])
        self._centre_D = plain_ND.mean(0)
        self._vectors_ND = torch.nn.functional.normalize(plain_ND - self._centre_D, dim=-1)

    def found(self, text: str) -> list[tuple[int, float]]:
        """(number of a question, cosine) of the nearest questions, as far as they reach the threshold."""
        vector_D = torch.nn.functional.normalize(self._mean(text) - self._centre_D, dim=0)
        best = (self._vectors_ND @ vector_D).topk(min(self.embedding.top, len(self._vectors_ND)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(number, cosine) for number, cosine in pairs if cosine >= self.embedding.threshold]

    @torch.inference_mode()
    def _mean(self, text: str) -> Tensor:
        limit = min(self.embedding.tokens, self._decoder.spec.context_length)
        ids: Any = self._tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        tokens_BT = torch.tensor([ids or [0]], device=self._decoder.embed_tokens.weight.device)
        return self._decoder(tokens_BT, read_out=lambda x_BTD, _: x_BTD)[0].float().mean(0).cpu()
