"""`ChatData`: chat rows for supervised fine-tuning, as Lightning's data module."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from lnlit.data.blend import BlendEntry
from lnlit.data.chat import ChatEncoder
from lnlit.data.corpus import DocumentReader, TooLong
from lnlit.data.packing import BestFit, OnePerRow, Row, collate
from lnlit.data.planned import PlannedData
from lnlit.data.tokenizer import load_tokenizer, pad_id
from lnlit.interfaces import Source, TokenBatch
from lnlit.thinking import Thinking, on_or_off


class ChatData(PlannedData):
    """Chat rows as packed token batches, with loss on the assistant's tokens only.

    Args:
        tokenizer: Model folder (or Hugging Face name) whose tokenizer and chat template to use.
        train: A source, or a blend of several in stages.
        sequence_length: Tokens per row, at most.
        micro_batch_size: Rows per batch and rank.
        val: Source of validation rows.
        packing: Fill each row with several documents; off: one document per row, padded to the batch's longest.
        seed: Seeds the order of the training rows.
        too_long: What to do with a conversation longer than `sequence_length`. Each case is counted.
        thinking: The toggle for rows that carry none themselves.
        streaming: Tokenise the training rows as they are needed instead of all at the start. The trainer sees no epochs
            then, so it needs `max_steps`.
        shuffle_buffer_size: Documents that a stream packs and shuffles at a time.
        padding_side: The side on which padding goes.
    """

    def __init__(
        self,
        tokenizer: str,
        train: Source | list[BlendEntry],
        sequence_length: int,
        micro_batch_size: int,
        val: Source | None = None,
        packing: bool = True,
        seed: int = 0,
        too_long: TooLong = "truncate",
        thinking: Thinking | bool | None = None,
        streaming: bool = False,
        shuffle_buffer_size: int = 1024,
        padding_side: Literal["right", "left"] = "right",
    ) -> None:
        layout = BestFit(sequence_length) if packing else OnePerRow()
        super().__init__(
            tokenizer, train, val, layout, sequence_length, micro_batch_size, seed, streaming, shuffle_buffer_size
        )
        self.too_long: TooLong = too_long
        self.thinking: Thinking | None = None if thinking is None else on_or_off(thinking)
        self.padding_side = padding_side

    @cached_property
    def encoder(self) -> ChatEncoder:
        """Renders and tokenises chats; `encoder.encode_prompt` makes prompts for generation."""
        return ChatEncoder(load_tokenizer(self.tokenizer_name), self.thinking)

    def _reader(self) -> DocumentReader:
        return DocumentReader(self.encoder, self.sequence_length, self.too_long)

    def _batch(self, rows: Sequence[Row], length: int) -> TokenBatch:
        return collate(rows, length, pad_id(self.encoder.tokenizer), self.padding_side)
