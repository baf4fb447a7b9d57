"""Exports a servable model folder at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lnlit.callbacks.interrupt import stopped_by
from lnlit.checkpoint.descent import descent
from lnlit.checkpoint.fingerprint import model_source
from lnlit.checkpoint.folder import check_target, save_folder, tell_readers
from lnlit.checkpoint.formats import read_spec, resolve
from lnlit.checkpoint.lightning import tokenizer_source
from lnlit.checkpoint.peft_writer import check_adapter, check_adapter_target, save_adapter, tell_base
from lnlit.checkpoint.run_record import run_record
from lnlit.data.chat import ChatEncoder, chat_folder
from lnlit.errors import UserError
from lnlit.files import expanded
from lnlit.interfaces.batch import TokenBatch
from lnlit.models.decoder import Decoder
from lnlit.models.lora import LoRA
from lnlit.models.weights import canonical_adapters, canonical_weights
from lnlit.thinking import TOGGLE

_BATCHES_LOOKED_AT = 100


@runtime_checkable
class ReadsModels(Protocol):
    """A training method that reads models beside the one it trains, by what they are to it."""

    @property
    def beside(self) -> Mapping[str, str]: ...


@runtime_checkable
class TrainsAdapters(Protocol):
    """A training method that may train adapters alone."""

    lora: LoRA | None


@runtime_checkable
class ExportsFiles(Protocol):
    """A training method that writes further files into the exported folder, such as the head of a reward model."""

    def export_files(self) -> Callable[[Path], None]:
        """Returns a function that writes the further files into a folder. Every rank calls `export_files`, which may be
        collective, and rank 0 calls the function."""
        ...


class ExportModel(L.Callback):
    """Writes config, weights, tokenizer and `lnlit.json` when training ends, with adapters merged in. A method that
    needs further files is an `ExportsFiles`.

    Args:
        out: The folder to write.
        overwrite: Replace the folder if it exists.
        adapter: Write the adapters of a LoRA run alone, as a PEFT folder.
    """

    def __init__(self, out: str, overwrite: bool = False, adapter: bool = False) -> None:
        self.out, self.overwrite, self.adapter = out, overwrite, adapter
        self._thinking = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":  # hours of training must not end in a refusal
            if not _trains_a_decoder(pl_module):
                raise UserError(
                    f"trainer.callbacks: ExportModel has nothing to write after {type(pl_module).__name__}, which "
                    "trains no whole model and writes its own results; remove it."
                )
            given = [value for value in vars(pl_module).values() if isinstance(value, str)]
            given += pl_module.beside.values() if isinstance(pl_module, ReadsModels) else ()
            if self.adapter:
                self._check_adapter(pl_module)
            (check_adapter_target if self.adapter else check_target)(expanded(self.out), self.overwrite, given)

    def _check_adapter(self, module: L.LightningModule) -> None:
        if not isinstance(module, TrainsAdapters) or module.lora is None:
            raise UserError("ExportModel.adapter: this run trains all weights; set model.lora, or leave it out.")
        if isinstance(module, ExportsFiles):
            raise UserError(
                f"ExportModel.adapter: {type(module).__name__} trains a head too, which no adapter holds; leave it out."
            )
        check_adapter(read_spec(str(module.model)), str(module.model))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Detects the reasoning toggle in the first batches. The exported folder then says that the model knows it (see
        `knows_thinking`)."""
        if self._thinking or batch_idx >= _BATCHES_LOOKED_AT or not isinstance(batch, TokenBatch):
            return
        encoder = getattr(trainer.datamodule, "encoder", None)  # type: ignore[attr-defined]
        if isinstance(encoder, ChatEncoder):
            self._thinking = TOGGLE in str(encoder.tokenizer.decode(batch.tokens.flatten().tolist()))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if stopped_by(trainer) is not None:  # not finished; `lnlit export CKPT OUT` writes what there is
            return
        decoder = cast(Decoder, pl_module.decoder)
        if self.adapter:
            self._write_adapter(trainer, pl_module, decoder)
            return
        provenance = {
            "thinking": self._thinking,
            **_provenance(trainer, pl_module),
        }  # a collective, so on every rank and before the weights are gathered
        add_files = pl_module.export_files() if isinstance(pl_module, ExportsFiles) else None
        tokenizer = chat_folder(trainer.datamodule) or resolve(str(pl_module.model))  # type: ignore[attr-defined]
        weights = canonical_weights(decoder)

        def write() -> None:
            save_folder(
                Path(self.out),
                decoder.spec,
                weights,
                tokenizer_from=tokenizer,
                provenance=provenance,
                overwrite=self.overwrite,
                add_files=add_files,
            )
            tell_readers(Path(self.out))

        self._write(trainer, weights, write)

    def _write_adapter(self, trainer: L.Trainer, module: L.LightningModule, decoder: Decoder) -> None:
        base, lora = model_source(str(module.model)), cast(TrainsAdapters, module).lora
        assert lora is not None, "checked in setup"
        tokenizer = chat_folder(trainer.datamodule) or tokenizer_source(resolve(base))  # type: ignore[attr-defined]
        adapters = canonical_adapters(decoder)

        def write() -> None:
            save_adapter(
                self.out, decoder.spec, lora, adapters, base=base, tokenizer_from=tokenizer, overwrite=self.overwrite
            )
            tell_base(Path(self.out))

        self._write(trainer, adapters, write)

    def _write(self, trainer: L.Trainer, tensors: Iterable[object], write: Callable[[], None]) -> None:
        """Calls `write`, which takes `tensors`, on rank 0. The others take part in gathering their shards."""
        if not trainer.is_global_zero:
            for _ in tensors:
                pass
            return
        try:
            write()
        except BaseException:
            for _ in tensors:  # the other ranks are waiting to gather
                pass
            raise
        rank_zero_info(f"wrote {self.out}")


def _provenance(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """The record of the run that goes into the folder. Every rank must call this: `log_dir` and metrics logged with
    `sync_dist` are collective operations."""
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        **descent(str(module.model)),
        **run_record(trainer, module),
        "metrics": {name: value for name, value in logged.items() if math.isfinite(value)},  # JSON has no NaN
    }


def _trains_a_decoder(module: L.LightningModule) -> bool:
    """True if the method's class declares a `decoder`. The decoder itself is built after the callbacks' `setup`."""
    return any("decoder" in getattr(cls, "__annotations__", ()) for cls in type(module).__mro__)
