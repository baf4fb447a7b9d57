"""Blockwise local distillation: every candidate of a block library learns to reproduce the output of the parent's
block.

Puzzle (Bercovich et al. 2024), section 3. Each candidate is a separate training problem: its input is the parent's
activations, no gradient crosses a block, and gradients are clipped per candidate. One forward pass of the parent serves
all candidates. They are trained one after the other, a few rows at a time, so the activations of only one candidate are
in memory.

With several ranks, each candidate belongs to one rank and learns from the rows of all. Candidates are thus divided with
their compute and memory, gradients are never communicated, and the result does not depend on the number of ranks. The
parent's weights are sharded: over all ranks under DDP, else over the strategy's mesh. Each rank runs the forward pass
over its own rows, which tensor-parallel ranks share; of one layer at a time it then has the activations of all rows,
whose memory grows with the number of data-parallel ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from lnlit.checkpoint.fingerprint import fingerprint, model_source
from lnlit.checkpoint.formats import read_spec
from lnlit.errors import UserError
from lnlit.interfaces import TokenBatch
from lnlit.models.decoder import Decoder
from lnlit.models.parallelize import mesh_of
from lnlit.models.ranks import merged, streamed
from lnlit.modules.block_checkpoint import on_cpu, restore, save_as_before, save_in_one_file, state_of
from lnlit.modules.block_parent import load_parent, parent_weights
from lnlit.modules.block_rows import Rows, rows_of_all_ranks, rows_of_every_rank
from lnlit.modules.lit_model import check_run, planned_steps
from lnlit.modules.micro_batches import documents_in_rows, real_tokens
from lnlit.modules.optim import AdamW
from lnlit.objectives.block_error import squared_difference, sum_of_squares
from lnlit.renamed import with_new_names
from lnlit.search.choice import At
from lnlit.search.library import Library, LibraryWriter
from lnlit.search.train import Trainee, divided, parameters, trainable, trained_layer

_STATE = "block_distill"
#: The paper states no optimizer. These are the defaults of NVIDIA's first public code.
_OPTIMIZER = AdamW(1e-4, warmup_ratio=0.05, weight_decay=0.1)

#: What a library's record says of candidates that were trained because none were named.
_BY_THEMSELVES = ("*/attention/*", "*/ffn/*")


@dataclass(frozen=True)
class _Run:
    """The constants of a run. Deliberately not an `nn.Module`, so that the parent is not part of checkpoints and DDP
    buckets."""

    library: Library
    calibration: Tensor
    writer: LibraryWriter
    parent: Decoder
    candidates: list[At]
    groups: list[list[int]]


class BlockDistill(L.LightningModule):
    """Trains a block library's candidates and writes them as a new library.

    The normalised error of each candidate, `MSE(its block, parent's block) / MSE(parent's block, 0)`, is its loss. By
    default attention and FFN candidates train beside the parent's frozen other half (decoupled); blocks train both
    halves together (coupled).

    Args:
        model: The parent that the library was made from.
        library: The block library to start from.
        out: Folder of the trained library.
        optimizer: AdamW and its schedule.
        only: Which candidates to train, by places like "layer_03/attention/kv1", "layer_03/ffn/i768" and
            "layer_03/block/kv1+i768", or by names like "kv1", with * and ?. By default every attention and every FFN.
        layers_at_once: How many layers train together. Weights and optimizer states of these are in memory, 16 bytes a
            parameter. Each group of layers trains for one epoch, so `trainer.max_epochs` is the number of groups.
        gradient_clip_val: Largest gradient norm of one candidate.
        batch_tokens: Tokens that go through a block together (at least one row); activations of so many are in memory.
            Changes results by rounding only.
        attention_kernel: A registered kernel, or "auto" for the device's fastest.
        replicas: How many groups of neighbouring ranks hold the whole parent, under ModelParallelStrategy.
    """

    _run: _Run

    def __init__(
        self,
        model: str,
        library: str,
        out: str,
        optimizer: AdamW = _OPTIMIZER,
        only: tuple[str, ...] | None = None,
        layers_at_once: int | None = None,
        gradient_clip_val: float = 1.0,
        batch_tokens: int = 4096,
        attention_kernel: str = "auto",
        replicas: int = 1,
    ) -> None:
        super().__init__()
        if gradient_clip_val <= 0 or min(batch_tokens, replicas, 1 if layers_at_once is None else layers_at_once) < 1:
            raise UserError("BlockDistill: gradient_clip_val, batch_tokens, layers_at_once, replicas must be positive")
        self.automatic_optimization = False
        self.model, self.library, self.out, self.optimizer = model, library, out, optimizer
        self.only, self.layers_at_once, self.gradient_clip_val = only, layers_at_once, gradient_clip_val
        self.batch_tokens, self.attention_kernel, self.replicas = batch_tokens, attention_kernel, replicas
        self.group, self.total_steps = 0, None
        self.trainees: list[Trainee] = []
        self.skipped = 0
        self._val_sums: dict[At, Tensor] = {}
        self._resumed: dict[str, Any] | None = None
        # DDP refuses a module without trainable parameters. Candidates are none of its business: each has one owner.
        self._anchor = nn.Parameter(torch.zeros(()))

    # building

    def setup(self, stage: str) -> None:
        save_in_one_file(self.trainer.strategy)

    def teardown(self, stage: str) -> None:
        save_as_before(self.trainer.strategy)

    def configure_model(self) -> None:
        if hasattr(self, "_run"):
            return
        trainer = self.trainer
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
            raise UserError("trainer.strategy: BlockDistill runs on one device, under ddp or ModelParallelStrategy.")
        mesh = mesh_of(self.device_mesh, self.replicas, "replicas")
        if trainer.state.fn != "fit":
            raise UserError(f"BlockDistill only trains: `lnlit fit`, not `lnlit {trainer.state.fn.value}`.")  # type: ignore
        if trainer.precision not in ("32-true", "bf16-mixed"):
            raise UserError(f"trainer.precision: {trainer.precision} is not supported. Use bf16-mixed or 32.")
        library, spec = Library.open(self.library), read_spec(self.model)
        library.check_parent(model_source(self.model), spec, fingerprint(self.model))
        check_run(trainer, spec, self.model)
        recipe = {
            "library": str(library.folder),
            "only": list(self.only or _BY_THEMSELVES),
            "optimizer": asdict(self.optimizer),
        }
        writer, chosen = LibraryWriter(self.out, recipe), trainable(library, self.only)
        layers = sorted({at.layer for at in chosen})
        at_once = self.layers_at_once or len(layers)
        groups = [layers[first : first + at_once] for first in range(0, len(layers), at_once)]
        self._check_groups(groups, chosen)
        dtype = torch.bfloat16 if trainer.precision == "bf16-mixed" else torch.float32
        parent = load_parent(self.model, self._where, dtype, self.attention_kernel, mesh)
        self._run = _Run(library, library.calibration(), writer, parent, chosen, groups)

    def _check_groups(self, groups: list[list[int]], chosen: list[At]) -> None:
        trainer: Any = self.trainer
        count = len(groups)
        fits = trainer.max_epochs == count and trainer.max_steps == -1
        if count > 1 and not (fits and trainer.reload_dataloaders_every_n_epochs == 1):
            raise UserError(
                f"layers_at_once: {self.layers_at_once} makes {count} groups of layers, which train one after another, "
                f"each for one epoch on the same rows. Set trainer.max_epochs: {count}, "
                "trainer.reload_dataloaders_every_n_epochs: 1 and no max_steps; trainer.limit_train_batches may "
                "shorten the epochs."
            )
        for group in groups:
            if (size := sum(at.layer in group for at in chosen)) < trainer.world_size:
                raise UserError(
                    f"only, layers_at_once: layers {group[0]} to {group[-1]} have {size} candidates to train together, "
                    f"fewer than the {trainer.world_size} ranks, of which each needs one. Train more layers at once, "
                    "or use fewer devices."
                )

    @property
    def _where(self) -> torch.device:
        return self.trainer.strategy.root_device

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Called for every group of layers: builds this rank's candidates of the group and their optimizer."""
        run = self._run
        if self.total_steps is None:
            self.total_steps = planned_steps(self.trainer, self.optimizer)
        mine = [at for at, rank in self._owners().items() if rank == self.trainer.global_rank]
        self.trainees = [
            Trainee(run.library, at, weights, self._where) for at, weights in parent_weights(self.model, sorted(mine))
        ]
        count = sum(parameters(run.library, at) for at in self._owners())
        rank_zero_info(
            f"layers {self._layers[0]} to {self._layers[-1]}: {len(self._owners())} candidates with {count:,} "
            "parameters learn together"
        )
        optimizer = self.optimizer.build(p for trainee in self.trainees for p in trainee.block.parameters())
        if self._resumed is not None:
            for trainee in self.trainees:
                restore(trainee, optimizer, self._resumed[str(trainee.at)])
            self._resumed = None
        return optimizer

    def _owners(self) -> dict[At, int]:
        """The rank of each candidate of the current group."""
        run = self._run
        sizes = {at: parameters(run.library, at) for at in sorted(run.candidates) if at.layer in self._layers}
        return divided(sizes, self.trainer.world_size)

    @property
    def _layers(self) -> list[int]:
        return self._run.groups[self.group]

    @property
    def _steps(self) -> int:
        """The number of optimizer steps per group."""
        return (self.total_steps or 0) // len(self._run.groups)

    # training

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        """Moves on to the next group of layers when the current one has had all its steps."""
        last = self.group + 1 == len(self._run.groups)
        if self.global_step == (self.group + 1) * self._steps and not last:
            if batch_idx != 0:
                raise UserError(f"an epoch of layers {self._layers} was cut short and resumed; start the run anew.")
            self._write_group()
            self.group += 1
            self.trainer.strategy.setup_optimizers(self.trainer)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> None:
        rows = self._rows(batch)
        optimizer: Any = self.optimizers()
        steps = self._steps
        for settings in optimizer.param_groups:
            settings["lr"] = self.optimizer.learning_rate * self.optimizer.factor(self.global_step % steps, steps)
        losses = {}
        for trainee, square, differences in self._errors(rows):
            loss = torch.zeros_like(square)
            for difference in differences:
                (difference / square).backward()
                loss += difference.detach() / square
            self._clip(trainee)
            losses[str(trainee.at)] = loss
        optimizer.step()
        optimizer.zero_grad()
        self._log(losses)

    def _errors(self, rows: Rows) -> Iterator[tuple[Trainee, Tensor, Iterator[Tensor]]]:
        """Yields (candidate, square of the parent block's output, squared difference to it), each summed over the
        rows' tokens without padding. Differences come for a few rows at a time, and each must be used before the next
        is requested."""
        masks = [
            slice(None) if real_BT.all() else real_BT for real_BT in map(real_tokens, rows.batches)
        ]  # mostly no padding
        for layer, steps in rows.steps(self._run.parent, self._layers):
            wanted = [step.out_BTD[real_BT] for step, real_BT in zip(steps, masks, strict=True)]
            square = sum_of_squares(wanted)
            for trainee in (trainee for trainee in self.trainees if trainee.at.layer == layer):
                outputs = (trainee.output(step)[real_BT] for step, real_BT in zip(steps, masks, strict=True))
                yield trainee, square, map(squared_difference, outputs, wanted)
                torch.clear_autocast_cache()  # or bf16 copies of all candidates pile up until the step ends

    def _clip(self, trainee: Trainee) -> None:
        """Clips one candidate's gradient. A gradient that is not finite is dropped, so AdamW leaves that candidate
        unchanged."""
        norm = nn.utils.clip_grad_norm_(trainee.block.parameters(), self.gradient_clip_val)
        if not torch.isfinite(norm):
            self.skipped += 1
            trainee.block.zero_grad()

    def _log(self, losses: dict[str, Tensor]) -> None:
        all_losses = merged(dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True)))
        self.log("train/loss", sum(all_losses.values()) / len(all_losses), prog_bar=True)
        self.log("train/skipped", float(self.skipped))
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict({f"bld/{name}": loss for name, loss in all_losses.items()})

    # validation

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self._tally(self._val_sums, self._rows(batch))

    def on_validation_epoch_end(self) -> None:
        errors, self._val_sums = _block_errors(self._val_sums), {}
        self.log("val/loss", sum(errors.values()) / len(errors), prog_bar=True)
        self.log_dict({f"bld_val/{at}": error for at, error in errors.items()})

    def _tally(self, sums: dict[At, Tensor], rows: Rows) -> None:
        for trainee, square, differences in self._errors(rows):
            sums[trainee.at] = sums.get(trainee.at, 0) + torch.stack([torch.stack([*differences]).sum(), square])

    def _rows(self, batch: TokenBatch) -> Rows:
        group = None if self.device_mesh is None else self.device_mesh["data_parallel"].get_group()
        return rows_of_all_ranks(batch, self.batch_tokens, self._where, group)

    # the trained library

    def on_fit_end(self) -> None:
        if self.total_steps is None or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if (step := self.global_step) < self.total_steps:
            as_it_is = "" if len(self._run.groups) > 1 else f", with trainer.max_steps: {step} to write what there is"
            rank_zero_info(f"stopped early at step {step}, no library written: go on by --ckpt_path last{as_it_is}")
            return
        self._write_group()
        if self.trainer.is_global_zero:
            run = self._run
            header = {
                **run.library.header,
                "provenance": {**run.library.header.get("provenance", {}), **self._record()},
            }
            for layer in range(len(run.library.layers)):
                if not run.writer.has(layer):  # nothing in it was to be trained
                    run.writer.write(layer, *trained_layer(run.library, layer, {}))
            run.writer.write_calibration(run.calibration)
            run.writer.finish(run.library.model, run.library.spec, header)
            rank_zero_info(f"wrote {run.writer.folder}")
        self.trainer.strategy.barrier()

    @torch.no_grad()
    def _write_group(self) -> None:
        """Measures the group's candidates on the library's calibration tokens, as was done for their initial errors,
        and writes its layers."""
        sums: dict[At, Tensor] = {}
        with self.trainer.precision_plugin.val_step_context():
            for batch in documents_in_rows(self._run.calibration.to(self._where), self.batch_tokens):
                self._tally(sums, rows_of_every_rank([batch]))
        errors, by_at = _block_errors(sums), {trainee.at: trainee for trainee in self.trainees}
        for layer in self._layers:
            owners = {at: rank for at, rank in self._owners().items() if at.layer == layer}
            weights = streamed(owners, lambda at: on_cpu(by_at[at].weights()))
            trained = {at: (tensors, errors[at]) for at, tensors in weights}
            if self.trainer.is_global_zero:
                self._run.writer.write(layer, *trained_layer(self._run.library, layer, trained))
        self.trainees = []
        self.trainer.strategy.barrier()

    def _record(self) -> dict[str, Any]:
        return {
            "trained_from": str(self._run.library.folder),
            "steps": self._steps,
            "optimizer": asdict(self.optimizer),
            "precision": self.trainer.precision,
            "seed": os.environ.get("PL_GLOBAL_SEED"),
            "data": getattr(getattr(self.trainer.datamodule, "train_plan", None), "fingerprint", None),  # type: ignore
        }

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves candidates and moments by name, so that a run can be resumed with any number of ranks. Rank 0 writes
        the file, and gathers those of all ranks."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        by_at = {trainee.at: trainee for trainee in self.trainees}
        states = dict(streamed(self._owners(), lambda at: state_of(by_at[at], optimizer)))
        checkpoint["optimizer_states"] = []  # Lightning's knows rank 0 only
        checkpoint[_STATE] = {
            "group": self.group,
            "total_steps": self.total_steps,
            "length": [self.trainer.max_steps, self.trainer.max_epochs],
            "skipped": self.skipped,
            "trainees": {str(at): state for at, state in states.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        with_new_names(checkpoint)
        saved, run = checkpoint.get(_STATE), self._run
        if saved is None:
            raise UserError("ckpt_path: this is no checkpoint of BlockDistill.")
        self.group, self.total_steps, self.skipped = saved["group"], saved["total_steps"], saved["skipped"]
        if self.group >= len(run.groups) or saved["trainees"].keys() != {str(at) for at in self._owners()}:
            raise UserError("ckpt_path: the checkpoint trains other candidates; keep library, only and layers_at_once.")
        if missing := [layer for group in run.groups[: self.group] for layer in group if not run.writer.has(layer)]:
            raise UserError(f"out: {run.writer.folder} lacks layer {missing[0]}, which was trained before; start anew.")
        self._resumed = saved["trainees"]
        if saved["length"] != [self.trainer.max_steps, self.trainer.max_epochs] and len(run.groups) == 1:
            self.total_steps = None  # planned anew
        if len(run.groups) > 1 and checkpoint["global_step"] % self._steps == 0:
            checkpoint.pop(type(self.trainer.datamodule).__qualname__, None)  # type: ignore  the next group starts over
        if self.trainees:  # a strategy of sharded models had them built before it read the checkpoint
            self.trainees = []
            self.trainer.strategy.setup_optimizers(self.trainer)

    # ranks

    def data_parallel_size(self) -> int:
        """The number of ranks that read different rows."""
        if self.device_mesh is not None:
            return self.device_mesh["data_parallel"].size()
        return self.trainer.world_size


def _block_errors(sums: dict[At, Tensor]) -> dict[At, float]:
    """The block errors of all ranks' candidates, computed from their summed squares."""
    return merged({at: float(difference / square) for at, (difference, square) in sums.items()})
