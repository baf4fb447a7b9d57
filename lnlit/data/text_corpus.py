"""Reads text sources as corpora of tokens, in memory or cached in a folder that later runs memory-map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lnlit.data.chat import Document
from lnlit.data.corpus import Reader
from lnlit.data.plan import Corpus
from lnlit.data.text import TextEncoder
from lnlit.errors import UserError
from lnlit.files import read_json, replaced_folder, write_json
from lnlit.interfaces import Source
from lnlit.progress import track

_FORMAT = 1
_TOKENS, _LENGTHS, _HEADER = "tokens.bin", "lengths.bin", "corpus.json"


@dataclass
class TextTally:
    """Counts what happened to rows. Blank ones are left out."""

    documents: int = 0
    tokens: int = 0
    blank: int = 0

    def __str__(self) -> str:
        blank = f"; {self.blank:,} blank" if self.blank else ""
        return f"{self.documents:,} documents, {self.tokens:,} tokens{blank}"


class TextReader(Reader):
    """Reads text sources as documents to be learned from their second token on; `tally` counts what it read.

    Args:
        encoder: Makes tokens of a text.
        text_key: The key of a row that holds its text.
        cache: Folder that keeps tokenised sources, each in a subfolder; None keeps them in memory.
    """

    def __init__(self, encoder: TextEncoder, text_key: str = "text", cache: Path | None = None) -> None:
        super().__init__()
        self.encoder, self.text_key, self.cache, self.tally = encoder, text_key, cache, TextTally()

    def _documents(self, source: Source, start: int = 0) -> Iterator[Document | None]:
        for tokens in self.encoder.read(source, self.text_key, start, partial(self.unread.add, source)):
            self.tally.blank += not len(tokens)
            self.tally.documents += len(tokens) > 0
            self.tally.tokens += len(tokens)
            yield Document(tokens, np.ones(len(tokens), np.bool_)) if len(tokens) else None  # type: ignore[arg-type]

    def corpus(self, source: Source, name: str) -> Corpus:
        if self.cache is None:
            documents = list(self._arrays(source, name))
            lengths = np.array([len(document) for document in documents], dtype=np.int64)
            tokens = np.concatenate([np.empty(0, np.int32), *documents])
            corpus = Corpus(tokens, lengths)
        else:
            corpus = self._kept(source, name)
        if not len(corpus):
            raise UserError(f"{name}: no text in {source}. Check the path, the split and text_key.")
        return corpus

    def prepare(self, source: Source, name: str) -> Path | None:
        """The subfolder of the cache that holds the source, tokenised now if it is not there yet."""
        if self.cache is None:
            return None
        folder = self.cache / self._key(source)
        header = folder / _HEADER
        if not header.is_file():
            try:
                self._keep(source, name, folder)
            except UserError:
                if not header.is_file():  # else another process was faster
                    raise
        return folder

    def _arrays(self, source: Source, name: str) -> Iterator[np.ndarray]:
        for document in track(self._documents(source), f"tokenising {name}", "row"):
            if document is not None:
                yield document.tokens  # type: ignore[misc]
        self.unread.tell(source)

    def _keep(self, source: Source, name: str, folder: Path) -> None:
        """Writes documents to disk as they come, so that memory does not grow with the corpus."""
        dtype = np.dtype(np.uint16 if len(self.encoder.tokenizer) <= 2**16 else np.uint32)
        lengths, digest = [], hashlib.sha256()
        reader = TextReader(self.encoder, self.text_key)
        with replaced_folder(folder) as scratch:
            with (scratch / _TOKENS).open("wb") as stream:
                for document in reader._arrays(source, name):
                    data = document.astype(dtype).tobytes()
                    digest.update(data)
                    stream.write(data)
                    lengths.append(len(document))
            np.array(lengths, dtype=np.int64).tofile(scratch / _LENGTHS)
            header = {
                "format": _FORMAT,
                "source": str(source),
                **asdict(reader.tally),
                "dtype": dtype.name,
                "sha256": digest.hexdigest(),
            }
            write_json(scratch / _HEADER, header)

    def _kept(self, source: Source, name: str) -> Corpus:
        folder = self.prepare(source, name)
        assert folder is not None
        header = read_json(folder / _HEADER, "a header of tokenised text")
        dtype = np.dtype(header["dtype"])
        wanted = {_TOKENS: header["tokens"] * dtype.itemsize, _LENGTHS: header["documents"] * 8}
        for file, size in wanted.items():
            if not (folder / file).is_file() or (folder / file).stat().st_size != size:
                raise UserError(f"{folder / file}: damaged, {size:,} bytes expected. Delete {folder} and start again.")
        self.tally.documents += header["documents"]
        self.tally.tokens += header["tokens"]
        self.tally.blank += header["blank"]
        if not header["tokens"]:  # an empty file cannot be mapped
            return Corpus(np.empty(0, dtype), np.empty(0, np.int64))
        tokens = np.memmap(folder / _TOKENS, dtype, mode="r")
        return Corpus(tokens, np.fromfile(folder / _LENGTHS, np.int64), digest=header["sha256"])

    def _key(self, source: Source) -> str:
        """A text that changes with the source's settings and files, and with everything that affects tokenisation."""
        tokenizer = hashlib.sha256(self.encoder.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()  # type: ignore
        what = {
            "format": _FORMAT,
            "source": _identity(source),
            "text_key": self.text_key,
            "tokenizer": tokenizer,
            "end": self.encoder.end_id,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _identity(value: Any) -> Any:
    """A source as JSON: its class and settings, and the path, size and modification time of each file."""
    if isinstance(value, Source):
        return {"class": type(value).__qualname__, **{k: _identity(v) for k, v in vars(value).items()}}
    if isinstance(value, Path):
        status = value.stat()
        return [str(value.resolve()), status.st_size, status.st_mtime_ns]
    if isinstance(value, dict):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
