"""The base class of the data modules: plans of rows, loaders that resume exactly, and each rank's share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.data.blend import BlendEntry, in_stages
from lnlit.data.chat import ChatEncoder
from lnlit.data.corpus import Reader, check_context
from lnlit.data.loader import Batch, EvalLoader, TrainLoader, count_batches
from lnlit.data.packing import Layout, OnePerRow, Row, collate, round_up
from lnlit.data.plan import FirstRows, MapPlan, Plan
from lnlit.data.sources import files_behind
from lnlit.data.stream import StreamPlan
from lnlit.data.text import TextEncoder
from lnlit.data.tokenizer import pad_id
from lnlit.errors import UserError
from lnlit.interfaces import Source

AnyLoader = TypeVar("AnyLoader", bound=EvalLoader)


class PlannedData(L.LightningDataModule, ABC):
    """Documents in rows of at most `sequence_length` tokens. A subclass defines how rows are read and laid out.

    Batches depend only on the data and the settings, not on the number of ranks, and a resumed run continues with the
    very next one.
    """

    def __init__(
        self,
        tokenizer: str,
        train: Source | list[BlendEntry],
        val: Source | None,
        layout: Layout,
        sequence_length: int,
        micro_batch_size: int,
        seed: int | None,
        streaming: bool,
        shuffle_buffer_size: int,
    ) -> None:
        super().__init__()
        sizes = {
            "sequence_length": sequence_length,
            "micro_batch_size": micro_batch_size,
            "shuffle_buffer_size": shuffle_buffer_size,
        }
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"data.{name}: expected a positive number, got {value}")
        if seed is not None and seed < 0:
            raise UserError(f"data.seed: expected 0 or a positive number, got {seed}")
        self.tokenizer_name = tokenizer
        self.stages = in_stages(train if isinstance(train, list) else [BlendEntry(train)])
        self.val = val
        self.layout = layout
        self.sequence_length = sequence_length
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.streaming = streaming
        self.shuffle_buffer_size = shuffle_buffer_size
        self._train_loader: TrainLoader | None = None
        self._resume_from: dict[str, Any] | None = None

    @property
    def row_length(self) -> int:
        """Tokens of a row, at most."""
        return self.sequence_length

    @property
    def micro_batch_tokens(self) -> int:
        """The number of tokens of a rank's batch, including padding; the maximum if rows are padded to the longest."""
        return self.micro_batch_size * self.row_length

    @property
    @abstractmethod
    def encoder(self) -> ChatEncoder | TextEncoder:
        """Encodes rows as tokens, with its `tokenizer`."""

    @abstractmethod
    def _reader(self) -> Reader:
        """A new reader of this data's rows."""

    def _batch(self, rows: Sequence[Row], length: int) -> Batch:
        """Rows, each padded to `length` tokens."""
        return collate(rows, length, pad_id(self.encoder.tokenizer))

    def _collate(self, rows: Sequence[Row]) -> Batch:
        if not isinstance(self.layout, OnePerRow):
            return self._batch(rows, self.row_length)
        longest = max((len(document) for row in rows for document in row), default=1)
        return self._batch(rows, min(round_up(longest, 16), self.row_length))

    def _fill(self, plan: MapPlan) -> str:
        """A description of how full the rows are."""
        if isinstance(self.layout, OnePerRow):
            return f"{plan.num_rows:,} rows per epoch, not packed"
        share = 100 * plan.num_tokens / (plan.num_rows * self.row_length)
        return f"{plan.num_rows:,} rows of {self.row_length} per epoch, {share:.1f} % full"

    @cached_property
    def train_reader(self) -> Reader:
        """The reader of training rows, whose `tally` counts those read so far."""
        return self._reader()

    @cached_property
    def val_reader(self) -> Reader:
        return self._reader()

    @cached_property
    def train_plan(self) -> Plan:
        if self.streaming:
            self._name_unmixed()
            return StreamPlan(
                self.stages,
                lambda entry, start: self.train_reader.read(entry.source, start),
                self.layout,
                self.seed,
                self.shuffle_buffer_size,
            )
        corpora = [[self.train_reader.corpus(entry.source, "train") for entry in stage] for stage in self.stages]
        plan = MapPlan(self.stages, corpora, self.layout, self.seed)
        rank_zero_info(f"train: {self.train_reader.tally}; {self._fill(plan)}")
        return plan

    @cached_property
    def val_plan(self) -> MapPlan | None:
        if self.val is None:
            return None
        stage = [BlendEntry(self.val)]
        plan = MapPlan([stage], [[self.val_reader.corpus(self.val, "val")]], self.layout, seed=None)
        rank_zero_info(f"val: {self.val_reader.tally}; {self._fill(plan)}")
        return plan

    def setup(self, stage: str) -> None:
        check_context(self.sequence_length, self.tokenizer_name)
        if stage == "fit":
            _ = self.train_plan
        if stage in ("fit", "validate"):
            _ = self.val_plan

    def train_dataloader(self) -> TrainLoader:
        trainer = self.trainer
        endless = trainer is not None and trainer.max_steps == -1 and isinstance(trainer.limit_train_batches, float)
        if self.streaming and endless:
            raise UserError("data.streaming: a stream's length is unknown, so say how long to train: trainer.max_steps")
        steps_done = None if trainer is None else lambda: trainer.global_step
        self._train_loader = self._placed(
            TrainLoader(self._limited(self.train_plan), self._collate, self.micro_batch_size, steps_done)
        )
        if self._resume_from is not None:
            self._train_loader.load_state_dict(self._resume_from)
            if trainer is not None:
                count_batches(trainer, -self._resume_from.get("again", 0))
            self._resume_from = None
        return self._train_loader

    def val_dataloader(self) -> EvalLoader | list[Any]:
        if self.val_plan is None:
            return []
        return self._placed(EvalLoader(self.val_plan, self._collate, self.micro_batch_size))

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

    def _name_unmixed(self) -> None:
        """Logs which files of a stream are never mixed, because a stream is only shuffled within a window."""
        for entry in (entry for stage in self.stages for entry in stage):
            if (files := files_behind(entry.source)) > 1:
                rank_zero_info(
                    f"train: {files} files are streamed one after the other, shuffled within "
                    f"{self.shuffle_buffer_size} documents (data.shuffle_buffer_size): a batch is of one file, "
                    f"{entry.source!s:.60} ... To mix them, give each "
                    "an entry of its own in data.train, with weight or rows."
                )

    def _limited(self, plan: Plan) -> Plan:
        """The plan as limited by `limit_train_batches` or `overfit_batches`, so that every epoch has the same first
        batches.

        Lightning ends the epoch, but our loaders would continue with other batches in the next one.
        """
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        whole = self._placed(EvalLoader(plan, self._collate, self.micro_batch_size))
        if isinstance(limit, float):
            batches = None if limit == 1.0 or plan.num_rows is None else int(limit * len(whole))
        else:
            batches = limit
        if not batches or (plan.num_rows is not None and batches >= len(whole)):
            return plan
        return FirstRows(plan, batches * whole.micro_batch_size * whole.world_size)

    def _placed(self, loader: AnyLoader) -> AnyLoader:
        """The loader, told which data-parallel rank this is. Under tensor parallelism that is not the global one."""
        shards = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        if shards:
            loader.set_rank(shards["rank"], shards["num_replicas"])
        return loader
