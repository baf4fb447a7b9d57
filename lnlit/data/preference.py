"""`PreferenceData`: several completions of each prompt with their rewards, for RPO and reward models.

A prompt's completions travel through plans, layouts and loaders as one document, which no layout cuts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any, Literal, cast

import numpy as np
import torch

from lnlit.data.blend import BlendEntry
from lnlit.data.chat import ChatEncoder, Document
from lnlit.data.corpus import RowReader
from lnlit.data.packing import BestFit, OnePerRow, Row, collate
from lnlit.data.plan import Corpus
from lnlit.data.planned import PlannedData
from lnlit.data.preference_rows import PreferenceRows, chats, unread
from lnlit.data.sources import where
from lnlit.data.tokenizer import load_tokenizer, pad_id
from lnlit.errors import UserError, shown
from lnlit.interfaces import PreferenceBatch, Source
from lnlit.thinking import Thinking, on_or_off

#: The key under which a row may bring the reference's log-probs of its completions.
REFERENCE = "reference_log_probs"


@dataclass(frozen=True)
class Group(Document):
    """All completions of one prompt, each preceded by its prompt. `lengths`, `rewards` and `reference` (the reference's
    log-probs, NaN if unknown) have one value per completion. `temperature` is that of the log-probs, NaN without any.
    """

    lengths: Sequence[int]
    rewards: Sequence[float]
    reference: Sequence[float]
    temperature: float

    @classmethod
    def of(
        cls,
        documents: Sequence[Document],
        rewards: Sequence[float],
        reference: Sequence[float] = (),
        temperature: float = float("nan"),
    ) -> Group:
        tokens = [token for document in documents for token in document.tokens]
        mask = [learned for document in documents for learned in document.loss_mask]
        unknown = [float("nan")] * len(documents)
        return cls(tokens, mask, [len(document) for document in documents], rewards, reference or unknown, temperature)

    def only(self, numbers: Sequence[int]) -> Group:
        """Some of the completions."""
        parts = self.completions()
        rewards, reference = ([values[number] for number in numbers] for values in (self.rewards, self.reference))
        return Group.of([parts[number] for number in numbers], rewards, reference, self.temperature)

    def piece(self, start: int, stop: int) -> Document:
        assert (start, stop) == (0, len(self)), "a layout must keep a prompt's completions together"
        return self

    def completions(self) -> list[Document]:
        return [Document.piece(self, start, stop) for start, stop in pairwise([0, *accumulate(self.lengths)])]


class Groups(Corpus):
    """Groups with the same number of completions, in flat arrays."""

    def __init__(self, groups: Sequence[Group]) -> None:
        flat = Corpus.of(groups)
        super().__init__(flat.tokens, flat.lengths, flat.loss_mask)
        self.completion_lengths = np.array([group.lengths for group in groups], dtype=np.int64)
        self.rewards = np.array([group.rewards for group in groups], dtype=np.float64)
        self.reference = np.array([group.reference for group in groups], dtype=np.float64)
        self.temperature = np.array([group.temperature for group in groups], dtype=np.float64)

    @cached_property
    def digest(self) -> str:
        arrays = (self.tokens, self.completion_lengths, self.rewards, self.reference, self.temperature)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    def __getitem__(self, index: int) -> Group:
        whole = super().__getitem__(index)
        per_part = (self.completion_lengths, self.rewards, self.reference, self.temperature)
        return Group(whole.tokens, whole.loss_mask, *(values[index].tolist() for values in per_part))


def encode_groups(encoder: ChatEncoder, rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Rows of `PreferenceRows` as groups. Only the last reply has loss; a reward that is missing is NaN."""
    documents = iter(encoder.encode_replies(chat for row in rows for chat in chats(row)))
    groups = []
    for row in rows:
        rewards = [float("nan") if reward is None else reward for reward in row["rewards"]]
        parts = [next(documents) for _ in rewards]
        groups.append(Group.of(parts, rewards, *_reference(row, parts)))
    return groups


def digest(completion: Document) -> str:
    """A digest of the tokens, including the prompt's, and of which of them are learned."""
    tokens, mask = np.asarray(completion.tokens, dtype=np.int64), np.asarray(completion.loss_mask, dtype=bool)
    return hashlib.blake2b(tokens.tobytes() + mask.tobytes(), digest_size=8).hexdigest()


def _reference(row: Mapping[str, Any], completions: Sequence[Document]) -> tuple[list[float], float]:
    """(log-probs, temperature) that `lnlit rollout reference` wrote into the row, if any. Raises `UserError` unless
    they belong to these tokens."""
    written = row.get(REFERENCE)
    if written is None:
        return [], float("nan")
    try:
        found, digests, temperature = written["log_probs"], written["digests"], written["temperature"]
        if not len(found) == len(digests) == len(completions):
            raise ValueError(f"{len(completions)} completions")
        if digests != [digest(completion) for completion in completions]:
            raise UserError(
                f"{REFERENCE}: about other tokens than these. The row was changed, or the tokenizer, chat template or "
                "thinking toggle is another one. Write it anew with `lnlit rollout reference`."
            )
        return [float("nan") if value is None else float(value) for value in found], float(temperature)
    except (TypeError, KeyError, ValueError) as error:
        expected = "temperature, and log_probs and digests, one of each per completion"
        raise UserError(f"{REFERENCE}: expected {expected}, got {shown(written)} ({error})") from error


@dataclass
class PreferenceTally:
    """Counts what happened to rows. `unpaired` rows had too few completions to begin with."""

    completions: int
    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    too_long: int = 0
    no_reward: int = 0
    unpaired: int = 0

    def __str__(self) -> str:
        share = 100 * self.loss_tokens / max(self.tokens, 1)
        counts = {"too long": self.too_long, "no reward": self.no_reward, "unpaired": self.unpaired}
        dropped = [f"{count} {why}" for why, count in counts.items() if count]
        return (
            f"{self.rows:,} prompts with {self.completions} completions each; {self.tokens:,} tokens, "
            f"{self.loss_tokens:,} of completions ({share:.0f} %); dropped: {', '.join(dropped) or 'none'}"
        )


class GroupReader(RowReader):
    """Reads rows of `PreferenceRows` as groups of `completions`, each of at most `sequence_length` tokens."""

    tally: PreferenceTally

    def __init__(
        self, encoder: ChatEncoder, sequence_length: int, completions: int, too_long: Literal["drop", "error"]
    ) -> None:
        super().__init__(partial(encode_groups, encoder))  # type: ignore[arg-type]
        self.sequence_length, self.completions, self.too_long = sequence_length, completions, too_long
        self.tally = PreferenceTally(completions)

    def _corpus(self, documents: list[Document]) -> Corpus:
        return Groups(cast(list[Group], documents))

    def _unread(self, row: Mapping[str, Any]) -> Iterable[str]:
        return (key for key in unread(row) if key != REFERENCE)

    def _held_to_length(self, document: Document, source: Source, index: int) -> Document | None:
        assert isinstance(document, Group)
        fits = [k for k, length in enumerate(document.lengths) if length <= self.sequence_length]
        if self.too_long == "error" and len(fits) < len(document.lengths):
            raise UserError(
                f"{where(source, index)}: {max(document.lengths)} tokens, and sequence_length is "
                f"{self.sequence_length}. Raise sequence_length, shorten the row, or set too_long to drop."
            )
        rewarded = [k for k in fits if not np.isnan(document.rewards[k])]
        if len(rewarded) < self.completions:
            few, short = (count < self.completions for count in (len(document.lengths), len(fits)))
            self.tally.unpaired += few
            self.tally.too_long += short and not few
            self.tally.no_reward += not short
            return None
        kept = sorted(_evenly(sorted(rewarded, key=lambda k: document.rewards[k]), self.completions))
        group = document.only(kept)
        self.tally.rows += 1
        self.tally.tokens += len(group)
        self.tally.loss_tokens += sum(group.loss_mask)
        return group


def _evenly(ranked: Sequence[int], count: int) -> list[int]:
    """`count` of the items, evenly spaced, including the first and the last."""
    return [ranked[round(step * (len(ranked) - 1) / (count - 1))] for step in range(count)]


def collate_groups(rows: Sequence[Row], completions: int, length: int, pad_id: int) -> PreferenceBatch:
    """Rows of groups as one batch, each row padded to `length` tokens. An empty row is all padding."""
    grouped = cast(Sequence[Sequence[Group]], rows)
    groups = [group for row in grouped for group in row]
    parts = [[part for group in row for part in group.completions()] for row in grouped]
    learned = [sum(part.loss_mask[1:]) for row in parts for part in row]
    rewards, reference = [group.rewards for group in groups], [group.reference for group in groups]
    temperature = [group.temperature for group in groups]
    return PreferenceBatch(
        collate(parts, length, pad_id),
        sample_N=torch.repeat_interleave(torch.arange(len(learned)), torch.tensor(learned, dtype=torch.int64)),
        rewards_PK=torch.tensor(rewards, dtype=torch.float32).view(len(groups), completions),
        reference_PK=torch.tensor(reference, dtype=torch.float64).view(len(groups), completions),
        reference_temperature_P=torch.tensor(temperature, dtype=torch.float64),
    )


class PreferenceData(PlannedData):
    """Prompts with several completions each; a prompt's completions stay in one row.

    `PreferenceRows` says what rows may look like. A row of a batch holds `completions * sequence_length` tokens.

    Args:
        tokenizer: Model folder (or Hugging Face name) whose tokenizer and chat template to use.
        train: A source, or a blend of several in stages.
        sequence_length: Tokens of a completion with its prompt, at most.
        micro_batch_size: Rows per batch and rank.
        val: Source of validation rows.
        packing: Fill each row with the completions of several prompts; off: one prompt per row, padded to the batch's
            longest, so that a step has as many prompts as rows.
        completions: Number of completions per prompt. If a row has more, those of evenly spaced rank are kept,
            including the best and the worst. A row with fewer is left out and counted.
        seed: Seeds the order of the training rows.
        too_long: "drop" leaves out completions longer than `sequence_length`, "error" refuses them. They are never cut:
            a reward is for the whole of one.
        thinking: The toggle for rows that carry none themselves.
        streaming: Tokenise the training rows as they are needed instead of all at the start. The trainer sees no epochs
            then, so it needs `max_steps`.
        shuffle_buffer_size: Prompts that a stream packs and shuffles at a time.
    """

    def __init__(
        self,
        tokenizer: str,
        train: Source | list[BlendEntry],
        sequence_length: int,
        micro_batch_size: int,
        val: Source | None = None,
        packing: bool = True,
        completions: int = 2,
        seed: int = 0,
        too_long: Literal["drop", "error"] = "drop",
        thinking: Thinking | bool | None = None,
        streaming: bool = False,
        shuffle_buffer_size: int = 1024,
    ) -> None:
        if completions < 2:
            raise UserError(f"data.completions: they are compared with each other, so 2 or more; got {completions}")
        entries = train if isinstance(train, list) else [BlendEntry(train)]
        super().__init__(
            tokenizer,
            [replace(entry, source=PreferenceRows(entry.source)) for entry in entries],
            None if val is None else PreferenceRows(val),
            BestFit(completions * sequence_length) if packing else OnePerRow(),
            sequence_length,
            micro_batch_size,
            seed,
            streaming,
            shuffle_buffer_size,
        )
        self.completions = completions
        self.too_long: Literal["drop", "error"] = too_long
        self.thinking: Thinking | None = None if thinking is None else on_or_off(thinking)

    @property
    def row_length(self) -> int:
        return self.completions * self.sequence_length

    @cached_property
    def encoder(self) -> ChatEncoder:
        """Renders and tokenises chats; `encoder.encode_prompt` makes prompts for generation."""
        return ChatEncoder(load_tokenizer(self.tokenizer_name), self.thinking)

    def _reader(self) -> GroupReader:
        return GroupReader(self.encoder, self.sequence_length, self.completions, self.too_long)

    def _batch(self, rows: Sequence[Row], length: int) -> PreferenceBatch:
        return collate_groups(rows, self.completions, length, pad_id(self.encoder.tokenizer))
