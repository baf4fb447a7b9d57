"""De-duplication by datatrove: rows with equal texts, and rows with nearly equal texts by MinHash.

Of rows that are duplicates of each other, one is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import datatrove.pipeline.dedup.exact_dedup as exact
import datatrove.pipeline.dedup.minhash as minhash
import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.text import simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer
from xxhash import xxh64_intdigest

from lnlit.curation._shards import ReadShard
from lnlit.curation.phases import Barrier, Phase
from lnlit.errors import UserError

#: What the filters of datatrove count by themselves, under the reason that we give it.
_REASON = "dropped_duplicate"


class Words(WordTokenizer):
    """Words as white space divides them. datatrove's own tokenizer for English loads spaCy for the same."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def _said(document: Document) -> bytes:
    """A document's text. Those without one are no duplicates of each other."""
    return (document.text or f"\0{document.id}").encode()


class _Dedup(Barrier):
    """What both have in common.

    Args:
        column: The column whose text is compared. Null compares what rows ask, without their answers.
    """

    def __init__(self, column: str | None = None) -> None:
        super().__init__()
        self.column = column
        self._found = ""

    def _filtered(self, blocks: PipelineStep, data: Any, rank: int, world_size: int) -> Iterator[Document]:
        """The rows that datatrove's own filter keeps, counted as ours."""
        blocks.stats = self.stats
        for document in blocks.run(data, rank, world_size):
            document.metadata.pop("duplicate_count", None)  # datatrove's note
            yield document
        if dropped := int(self.stats["dropped"].total):
            self.stat_update(_REASON, value=dropped)


class ExactDedup(_Dedup):
    """Keeps one of all rows whose texts are equal, character by character."""

    def phases(self, shards: str, work: str, tasks: int) -> list[Phase]:
        signatures, self._found = f"{work}/signatures", f"{work}/duplicates"
        read = ReadShard(shards, self.column)
        return [
            Phase("ExactDedup: signatures", [read, exact.ExactDedupSignature(signatures, self._config())], tasks),
            Phase("ExactDedup: duplicates", [_Find(signatures, self._found, self._config())], 1),
        ]

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        Path(self._found).mkdir(exist_ok=True, parents=True)  # datatrove makes none where there are no duplicates
        with _without_bars(exact):
            yield from self._filtered(exact.ExactDedupFilter(self._found, self._config()), data, rank, world_size)

    def _config(self) -> exact.ExactDedupConfig:
        return exact.ExactDedupConfig(content_getter=_said)


class MinHashDedup(_Dedup):
    """Keeps one of all rows whose texts are nearly equal, by MinHash over n-grams of words.

    The probability that two texts with the Jaccard similarity s count as duplicates is 1 - (1 - s^h)^b for b buckets of
    h hashes: with 14 of 8 it is 0.56 for s = 0.7 and 0.92 for s = 0.8. Texts of fewer words than an n-gram are all
    kept, and case, punctuation and accents do not count.

    Args:
        column: The column whose text is compared. Null compares what rows ask, without their answers.
        ngram: The number of words in an n-gram.
        buckets: The number of buckets.
        hashes_per_bucket: The number of hashes in a bucket.
        numbers: Tell different numbers apart. Otherwise exercises that differ in their numbers alone are duplicates.
        seed: Other seeds, other hashes.
    """

    def __init__(
        self,
        column: str | None = None,
        ngram: int = 5,
        buckets: int = 14,
        hashes_per_bucket: int = 8,
        numbers: bool = True,
        seed: int = 1,
    ) -> None:
        super().__init__(column)
        for name, value in (("ngram", ngram), ("buckets", buckets), ("hashes_per_bucket", hashes_per_bucket)):
            if value < 1:
                raise UserError(f"MinHashDedup.{name}: expected a positive number, got {value}")
        self.ngram, self.buckets, self.hashes_per_bucket = ngram, buckets, hashes_per_bucket
        self.numbers, self.seed = numbers, seed

    def phases(self, shards: str, work: str, tasks: int) -> list[Phase]:
        signatures, pairs, self._found = f"{work}/signatures", f"{work}/pairs", f"{work}/removed"
        config, read = self._config(), ReadShard(shards, self.column)
        signed = _Signature(signatures, config, language=Words())  # type: ignore[arg-type]
        clusters = _Cluster(pairs, self._found, config)
        return [
            Phase("MinHashDedup: signatures", [read, signed], tasks),
            Phase("MinHashDedup: pairs", [minhash.MinhashDedupBuckets(signatures, pairs, config=config)], self.buckets),
            Phase("MinHashDedup: clusters", [clusters], 1),
        ]

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        Path(self._found).mkdir(exist_ok=True, parents=True)
        yield from self._filtered(minhash.MinhashDedupFilter(self._found), data, rank, world_size)

    def _config(self) -> minhash.MinhashConfig:
        norm = minhash.TextNormConfig(norm_numbers=not self.numbers)
        return minhash.MinhashConfig(self.ngram, self.buckets, self.hashes_per_bucket, self.seed, norm)


class _Find(exact.ExactFindDedups):
    """datatrove's, without its bars."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        with _without_bars(exact):
            return super().run(data, rank, world_size)


class _Signature(minhash.MinhashDedupSignature):
    """datatrove's, which hashes bytes: xxhash has refused text since its version 4."""

    def get_shingles(self, text: str) -> np.ndarray:
        words, size = simplify_text(text, self.config.norm_config).split(), self.config.n_grams
        grams = (" ".join(words[start : start + size]) for start in range(len(words) - size + 1))
        return np.fromiter((xxh64_intdigest(gram.encode()) for gram in grams), dtype=np.uint64).reshape(-1, 1)


class _Cluster(minhash.MinhashDedupCluster):
    """datatrove's, without its bars."""

    def run(self, data: Any = None, _: int = 0, world_size: int = 1) -> Any:
        with _without_bars(minhash):
            return super().run(data, _, world_size)


@contextmanager
def _without_bars(module: ModuleType) -> Iterator[None]:
    """datatrove draws bars of its own, which nothing turns off and which would break the lines of ours."""
    names = vars(module)
    drawn = names["tqdm"]
    names["tqdm"] = partial(drawn, disable=True)
    try:
        yield
    finally:
        names["tqdm"] = drawn
