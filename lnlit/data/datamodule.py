"""`ChatData`: chat rows for supervised fine-tuning, as Lightning's data module."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.data.blend import BlendEntry, in_stages
from lnlit.data.chat import ChatEncoder, Thinking, on_or_off
from lnlit.data.corpus import DocumentReader, TooLong, check_context
from lnlit.data.loader import EvalLoader, TrainLoader
from lnlit.data.packing import Row, collate, round_up
from lnlit.data.plan import MapPlan, Plan
from lnlit.data.stream import StreamPlan
from lnlit.data.tokenizer import load_tokenizer, pad_id
from lnlit.errors import UserError
from lnlit.interfaces import Source, TokenBatch


class ChatData(L.LightningDataModule):
    """Chat rows as packed token batches, with loss on the assistant's tokens only.

    Args:
        tokenizer: model folder (or Hugging Face name) whose tokenizer and chat template to use.
        train: a source, or a blend of several in stages.
        sequence_length: tokens per row, at most.
        micro_batch_size: rows per batch and rank.
        val: source of validation rows.
        packing: fill each row with several documents; off: one document per row, padded to the batch's longest.
        seed: seeds the order of the training rows.
        too_long: what to do with a conversation longer than `sequence_length`; each case is counted.
        thinking: the toggle for rows that carry none themselves.
        streaming: tokenise the training rows as they are needed instead of all at the start. The trainer sees no
            epochs then, so it needs `max_steps`.
        window: documents that a stream packs and shuffles at a time.
        padding_side: where padding goes.
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
        window: int = 1024,
        padding_side: Literal["right", "left"] = "right",
    ) -> None:
        super().__init__()
        sizes = {"sequence_length": sequence_length, "micro_batch_size": micro_batch_size, "window": window}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"data.{name}: expected a positive number, got {value}")
        self.tokenizer_name = tokenizer
        self.stages = in_stages(train if isinstance(train, list) else [BlendEntry(train)])
        self.val = val
        self.sequence_length = sequence_length
        self.micro_batch_size = micro_batch_size
        self.packing = packing
        self.seed = seed
        self.too_long: TooLong = too_long
        self.thinking: Thinking | None = None if thinking is None else on_or_off(thinking)
        self.streaming = streaming
        self.window = window
        self.padding_side = padding_side
        self._train_loader: TrainLoader | None = None
        self._resume_from: dict[str, Any] | None = None

    @cached_property
    def encoder(self) -> ChatEncoder:
        """Renders and tokenises chats; `encoder.encode_prompt` makes prompts for generation."""
        return ChatEncoder(load_tokenizer(self.tokenizer_name), self.thinking)

    @cached_property
    def train_reader(self) -> DocumentReader:
        """Its `tally` counts the training rows read so far."""
        return DocumentReader(self.encoder, self.sequence_length, self.too_long)

    @cached_property
    def val_reader(self) -> DocumentReader:
        return DocumentReader(self.encoder, self.sequence_length, self.too_long)

    @cached_property
    def train_plan(self) -> Plan:
        if self.streaming:
            return StreamPlan(
                self.stages,
                lambda entry, start: self.train_reader.read(entry.source, start),
                self._capacity,
                self.seed,
                self.window,
            )
        corpora = [[self.train_reader.corpus(entry.source, "train") for entry in stage] for stage in self.stages]
        plan = MapPlan(self.stages, corpora, self._capacity, self.seed)
        rank_zero_info(f"train: {self.train_reader.tally}; {self._fill(plan)}")
        return plan

    @cached_property
    def val_plan(self) -> MapPlan | None:
        if self.val is None:
            return None
        stage = [BlendEntry(self.val)]
        plan = MapPlan([stage], [[self.val_reader.corpus(self.val, "val")]], self._capacity, seed=None)
        rank_zero_info(f"val: {self.val_reader.tally}; {self._fill(plan)}")
        return plan

    def setup(self, stage: str) -> None:
        check_context(self.sequence_length, self.tokenizer_name)
        if stage == "fit":
            _ = self.train_plan
        if stage in ("fit", "validate"):
            _ = self.val_plan

    def train_dataloader(self) -> TrainLoader:
        if self.streaming and self.trainer is not None and self.trainer.max_steps == -1:
            raise UserError("data.streaming: a stream's length is unknown, so say how long to train: trainer.max_steps")
        self._train_loader = TrainLoader(self.train_plan, self._collate, self.micro_batch_size)
        self._set_rank(self._train_loader)
        if self._resume_from is not None:
            self._train_loader.load_state_dict(self._resume_from)
            self._resume_from = None
        return self._train_loader

    def val_dataloader(self) -> EvalLoader | list[Any]:
        if self.val_plan is None:
            return []
        loader = EvalLoader(self.val_plan, self._collate, self.micro_batch_size)
        self._set_rank(loader)
        return loader

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self._train_loader is not None:
            self._train_loader.mark_consumed(batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The train loader's state. Lightning keeps one too, but ignores it when the checkpoint is an epoch's last."""
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume_from = state_dict.get("train")

    def teardown(self, stage: str) -> None:
        if self.streaming and stage == "fit":
            rank_zero_info(f"train, streamed: {self.train_reader.tally}")

    @property
    def _capacity(self) -> int | None:
        return self.sequence_length if self.packing else None

    def _collate(self, rows: Sequence[Row]) -> TokenBatch:
        length = self.sequence_length
        if not self.packing:
            longest = max((len(document) for row in rows for document in row), default=1)
            length = min(round_up(longest, 16), self.sequence_length)
        return collate(rows, length, pad_id(self.encoder.tokenizer), self.padding_side)

    def _set_rank(self, loader: EvalLoader) -> None:
        shards = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        if shards:  # data-parallel ranks, which under tensor parallelism are not the global ones
            loader.set_rank(shards["rank"], shards["num_replicas"])

    def _fill(self, plan: MapPlan) -> str:
        if not self.packing:
            return f"{plan.num_rows:,} rows per epoch, not packed"
        share = 100 * plan.num_tokens / (plan.num_rows * self.sequence_length)
        return f"{plan.num_rows:,} packs of {self.sequence_length} per epoch, {share:.1f} % full"
