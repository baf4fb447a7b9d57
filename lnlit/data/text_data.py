"""`TextData`: plain text for continued pretraining and distillation, as Lightning's data module."""

from __future__ import annotations

from functools import cached_property

from lnlit.data.blend import BlendEntry
from lnlit.data.packing import Cut
from lnlit.data.planned import PlannedData
from lnlit.data.text import TextEncoder
from lnlit.data.text_corpus import TextReader
from lnlit.data.tokenizer import read_tokenizer
from lnlit.errors import UserError
from lnlit.files import expanded
from lnlit.interfaces import Source


class TextData(PlannedData):
    """Documents in one line, each ended by the end-of-text token, cut in rows of `sequence_length`.

    Every token is learned but the first of each document. Attention does not cross from one document into another (as
    in Llama 3's pretraining, section 3.2 of Dubey et al. 2024). Each epoch shuffles the documents anew.

    Args:
        tokenizer: Model folder (or Hugging Face name) whose tokenizer to use.
        train: A source, or a blend of several in stages; a weight is a share of documents.
        sequence_length: Tokens per row.
        micro_batch_size: Rows per batch and rank.
        val: Source of validation rows.
        text_key: The key of a row that holds its text.
        end_of_text: The token that ends a document; null finds the tokenizer's own.
        cache: Folder to keep tokens in, so that a source is tokenised once for all runs and its tokens are read from
            the disk as needed. Changed files are noticed; a hub dataset that changed under the same revision is not.
        seed: Seeds the order of the training documents.
        streaming: Tokenise the training documents as they are needed instead of all at the start. The trainer sees no
            epochs then, so it needs `max_steps`.
        shuffle_buffer_size: Documents that a stream shuffles and cuts at a time; only the last row of a window is
            padded.
    """

    def __init__(
        self,
        tokenizer: str,
        train: Source | list[BlendEntry],
        sequence_length: int,
        micro_batch_size: int,
        val: Source | None = None,
        text_key: str = "text",
        end_of_text: str | None = None,
        cache: str | None = None,
        seed: int = 0,
        streaming: bool = False,
        shuffle_buffer_size: int = 1024,
    ) -> None:
        layout = Cut(sequence_length)
        super().__init__(
            tokenizer, train, val, layout, sequence_length, micro_batch_size, seed, streaming, shuffle_buffer_size
        )
        if streaming and cache is not None:
            raise UserError("data: a stream keeps no tokens, so cache and streaming exclude each other; drop one")
        self.text_key = text_key
        self.end_of_text = end_of_text
        self.cache = None if cache is None else expanded(cache)

    @cached_property
    def encoder(self) -> TextEncoder:
        return TextEncoder(read_tokenizer(self.tokenizer_name), self.end_of_text)

    def prepare_data(self) -> None:
        """Tokenises the sources. Lightning calls this on one process per node before `setup` on all, which then find
        the tokens ready."""
        if self.cache is None:
            return
        fits = self.trainer is None or self.trainer.state.fn == "fit"
        train = [("train", entry.source) for stage in self.stages for entry in stage] if fits else []
        for name, source in [*train, *([("val", self.val)] if self.val is not None else [])]:
            self._reader().prepare(source, name)

    def _reader(self) -> TextReader:
        return TextReader(self.encoder, self.text_key, self.cache)
