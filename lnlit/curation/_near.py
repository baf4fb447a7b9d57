"""The nearest of many questions to a text, by the hidden states of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lnlit.checkpoint.formats import resolve
from lnlit.checkpoint.load import frozen_decoder
from lnlit.data.tokenizer import load_tokenizer
from lnlit.models.device import accelerator


class Near:
    """The vectors of questions, to find those near to a text's.

    The mean of the questions' vectors is subtracted from all, because the states of language models have a large part
    in common that says nothing about a text.

    Args:
        folder: Model folder with a tokenizer.
        tokens: What is read of a text.
        questions: The questions.
    """

    def __init__(self, folder: str, tokens: int, questions: Sequence[str]) -> None:
        self.tokens = tokens
        self._decoder = frozen_decoder(resolve(folder), accelerator(), torch.float32)
        self._tokenizer = load_tokenizer(resolve(folder))
        plain_ND = torch.stack([self._mean(text) for text in questions])
        self._centre_D = plain_ND.mean(0)
        self._vectors_ND = torch.nn.functional.normalize(plain_ND - self._centre_D, dim=-1)

    def found(self, text: str, top: int, threshold: float) -> list[tuple[int, float]]:
        """(number of a question, cosine) of the `top` nearest questions, as far as they reach the threshold."""
        vector_D = torch.nn.functional.normalize(self._mean(text) - self._centre_D, dim=0)
        best = (self._vectors_ND @ vector_D).topk(min(top, len(self._vectors_ND)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(number, cosine) for number, cosine in pairs if cosine >= threshold]

    @torch.inference_mode()
    def _mean(self, text: str) -> Tensor:
        limit = min(self.tokens, self._decoder.spec.context_length)
        ids: Any = self._tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        tokens_BT = torch.tensor([ids or [0]], device=self._decoder.embed_tokens.weight.device)
        return self._decoder(tokens_BT, read_out=lambda x_BTD, _: x_BTD)[0].float().mean(0).cpu()
