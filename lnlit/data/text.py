"""Converts plain text to tokens: documents for language models, and a small fixed sample for calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lnlit.data.messages import check_text
from lnlit.data.sources import naming_row, rows_of
from lnlit.data.tokenizer import read_tokenizer
from lnlit.errors import UserError
from lnlit.interfaces import Source

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

#: Rows, or characters, tokenised in one call, which spreads them over the cores.
_CHUNK_ROWS, _CHUNK_CHARACTERS = 512, 2**21

#: Tokens that end a training document. A chat model's own end token ends a turn instead, so these are tried first.
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")


class TextEncoder:
    """Encodes texts as token ids: the tokens that the tokenizer puts in front (Llama 3's `<|begin_of_text|>`), the
    text, and the end of text.

    The text of a control token inside a document stays text.

    Args:
        tokenizer: A fast tokenizer.
        end_of_text: The token that ends a document. None finds the tokenizer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_of_text: str | None = None) -> None:
        self.tokenizer = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self.end_id = self._end_id(end_of_text)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (int32) of each text, tokenised on all cores. A text that is blank gives an empty array."""
        self._backend.encode_special_tokens = True
        try:
            encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=True)
        finally:
            self._backend.encode_special_tokens = False
        return [
            self._ended(encoding.ids) if text.strip() else np.empty(0, np.int32)
            for text, encoding in zip(texts, encoded, strict=True)
        ]

    def read(
        self,
        source: Source,
        text_key: str = "text",
        start: int = 0,
        rest: Callable[[list[str]], object] = lambda keys: None,
    ) -> Iterator[np.ndarray]:
        """Yields one array per row from row `start` on, empty for a blank text. Raises `UserError` naming a row without
        text. `rest` is called with the other keys of each row that have content."""
        texts: list[str] = []
        characters = 0
        for index, row in enumerate(rows_of(source, start), start):
            with naming_row(source, index):
                texts.append(_text(row, text_key))
            rest([key for key, value in row.items() if key != text_key and value not in (None, "", [], {})])
            characters += len(texts[-1])
            if len(texts) == _CHUNK_ROWS or characters >= _CHUNK_CHARACTERS:
                yield from self.encode_many(texts)
                texts, characters = [], 0
        yield from self.encode_many(texts)

    def _ended(self, ids: list[int]) -> np.ndarray:
        return np.array(ids if ids[-1:] == [self.end_id] else [*ids, self.end_id], dtype=np.int32)

    def _end_id(self, end_of_text: str | None) -> int:
        wanted = _END_OF_TEXT if end_of_text is None else (end_of_text,)
        found = [self._backend.token_to_id(text) for text in wanted]
        own = self.tokenizer.eos_token_id if end_of_text is None else None
        for token in (*found, own):
            if isinstance(token, int):
                return token
        names = ", ".join(repr(text) for text in wanted)
        raise UserError(
            f"end_of_text: the tokenizer has no token {names}. Name the token that ends its training documents."
        )


def _text(row: Mapping[str, Any], key: str) -> str:
    if isinstance(text := row.get(key), str):
        check_text(text)
        return text
    if key in row:
        raise UserError(f"{key!r} must be text, got {type(text).__name__}")
    keys = ", ".join(map(str, row)) or "none"
    raise UserError(f"no key {key!r}; it has: {keys}. Set text_key to the one that holds text.")


@dataclass(frozen=True)
class TextSample:
    """Fixed rows of text for calibration and scoring, the same wherever they are asked for.

    A row begins with a document, and one that is shorter than `length` is followed by the next. What a row leaves of
    its last document is dropped, so no document is in two rows: a few long ones do not make up the whole sample.

    Args:
        source: The source of the documents.
        rows: Number of rows.
        length: Tokens per row.
        skip: Documents to leave out first, e.g. those that another sample used.
        text_key: The key of a row that holds its text.
    """

    source: Source
    rows: int = 32
    length: int = 512
    skip: int = 0
    text_key: str = "text"

    def __post_init__(self) -> None:
        for name, least in {"rows": 1, "length": 1, "skip": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"sample.{name}: expected at least {least}, got {getattr(self, name)}")

    def tokens(self, tokenizer: str) -> Tensor:
        """The rows as int64 [rows, length]. Documents end with the end-of-text token.

        `tokenizer` is a model folder or a Hugging Face name. Raises `UserError` if the source has too few documents.
        """
        encoder = TextEncoder(read_tokenizer(tokenizer))
        rows: list[np.ndarray] = []
        row = np.empty(0, np.int32)
        for document in encoder.read(self.source, self.text_key, self.skip):
            row = np.concatenate([row, document[: self.length - len(row)]])
            if len(row) == self.length:
                rows.append(row)
                row = np.empty(0, np.int32)
            if len(rows) == self.rows:
                return torch.from_numpy(np.stack(rows).astype(np.int64))
        skipped = f" after the first {self.skip} documents" if self.skip else ""
        raise UserError(
            f"sample: {self.source} gives {len(rows):,} rows of {self.length} tokens{skipped}, each document in one "
            f"row only; {self.rows} were asked for. Lower rows, length or skip, or give more documents."
        )
