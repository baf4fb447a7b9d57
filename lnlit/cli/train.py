"""LightningCLI with lnlit's names, defaults, errors and exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI 2.6 calls what jsonargparse 5 removes

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch.distributed.checkpoint.api import CheckpointException

import lnlit.callbacks
from lnlit.callbacks.checkpoints import check_unused, checkpoint_folder, list_checkpoints
from lnlit.callbacks.interrupt import stopped_by
from lnlit.cli import names, overrides
from lnlit.cli.explain import explain
from lnlit.cli.written import Written
from lnlit.errors import UserError

#: Folder of TensorBoard's files and the resolved configuration, within the run's `default_root_dir`.
_LOGS = "logs"
_TRAINER_DEFAULTS: dict[str, Any] = {
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": "", "version": _LOGS, "default_hp_metric": False},
    },
    "default_root_dir": "runs",
    "log_every_n_steps": 1,  # a step of a language model takes longer than a line in a file
    "inference_mode": False,  # FSDP2's first forward pass cannot run in inference mode
    "use_distributed_sampler": False,  # our loaders place their rows themselves; a replaced sampler cannot resume
}


class LitCLI(LightningCLI):
    """One command with its parser, trainer, model and data; running it is part of constructing it, as in Lightning."""

    def __init__(self, command: str, arguments: list[str], written: Written) -> None:
        self._command, self._written = command, written
        names.install()
        overrides.install()
        strict: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            args=[command, *arguments],
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=dict(_TRAINER_DEFAULTS),
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lnlit", **strict, self._command: dict(strict)},
            auto_configure_optimizers=False,  # a training method owns its optimizer
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the command that runs: building the parsers of the other three takes time."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise UserError(explain(self._parser(self._command), self._written, str(error))) from error

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint. Lightning would let its hyper-parameters override the configuration here."""
        config = self.config[self._command]
        path = config.get("ckpt_path")
        if path == "last":
            folder = checkpoint_folder(config.trainer.default_root_dir)
            found = list_checkpoints(folder)
            config.ckpt_path = str(found[-1]) if found else None
            print(f"resuming from {found[-1]}" if found else f"no checkpoint in {folder} yet", file=sys.stderr)
        elif path and path != "best" and not Path(path).exists():
            raise UserError(f"ckpt_path: there is no file or folder {str(path)!r}. Give a path, 'last' or 'best'.")

    def instantiate_classes(self) -> None:
        """jsonargparse wraps an error of a constructor in the types it tried; the user's error is its cause."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise names.cause_of(error) from None

    def before_fit(self) -> None:
        """Refuse a used folder at once, and log the configuration as TensorBoard hyper-parameters."""
        checkpoints = any(isinstance(c, lnlit.callbacks.Checkpoint) for c in self.trainer.callbacks)  # type: ignore
        if checkpoints and self.config[self._command].ckpt_path is None and not self.trainer.fast_dev_run:  # type: ignore
            check_unused(self.trainer.default_root_dir)
        resolved = yaml.safe_load(self._parser(self._command).dump(self.config[self._command], skip_none=False))
        for logger in self.trainer.loggers:
            logger.log_hyperparams({key: resolved[key] for key in ("seed_everything", "model", "data", "trainer")})

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer with the callbacks every run has, but for those the configuration gives or switches off."""
        config = {**self._get(self.config_init, "trainer"), **kwargs}
        if config["use_distributed_sampler"]:
            raise UserError(
                "trainer.use_distributed_sampler: must be false; lnlit's loaders place their rows on ranks themselves, "
                "and a sampler that Lightning puts in their place cannot resume."
            )
        logger = config["logger"]
        if isinstance(logger, TensorBoardLogger) and logger.log_dir == str(Path("runs") / _LOGS):  # ours, not chosen
            config["logger"] = TensorBoardLogger(config["default_root_dir"], "", _LOGS, default_hp_metric=False)
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        off: list[type] = [Checkpoint] if config["enable_checkpointing"] is False else []
        if config["enable_progress_bar"] is False or any(isinstance(callback, ProgressBar) for callback in given):
            off.append(ProgressBar)
        unwanted = (*off, *map(type, given))
        always = [] if config["barebones"] else lnlit.callbacks.default_callbacks()
        try:
            return self._instantiate_trainer(config, [c for c in always if not isinstance(c, unwanted)])
        except (MisconfigurationException, ValueError) as error:  # it has seen nothing but the user's settings
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def run(command: str, arguments: list[str], written: Written) -> int:
    """Run one command and return its exit code: 130 after Ctrl-C, 143 after SIGTERM, else 0. `written` is `arguments`
    with the files they name, read.
    """
    _quieten()
    try:
        cli = LitCLI(command, arguments, written)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except CheckpointException as error:
        raise _of_shards(error) from error
    except SIGTERMException:
        return 128 + signal.SIGTERM
    except SystemExit as stop:  # --help, --print_config, or Lightning's exit after Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        return int(stop.code or 0)
    return _exit_code(cli)


def _of_shards(error: CheckpointException) -> BaseException:
    """What a rank met when it wrote or read its shards. Whatever is not the disk's is the checkpoint's."""
    cause = next(found for found, _ in error.failures.values())
    if isinstance(cause, OSError):
        return cause
    return UserError(f"ckpt_path: the sharded checkpoint does not fit this run: {' '.join(str(cause).split())}")


def _exit_code(cli: LitCLI) -> int:
    """128 + the signal that cut the run short, else 0."""
    received = stopped_by(cli.trainer)
    if received is None:
        return 0
    if cli.trainer.is_global_zero:
        saved = any(isinstance(callback, Checkpoint) for callback in cli.trainer.callbacks)  # type: ignore[attr-defined]
        advice = "; go on with --ckpt_path last" if saved else ", nothing saved: enable_checkpointing is false"
        print(f"stopped by {signal.Signals(received).name}{advice}", file=sys.stderr)
    return 128 + received


def _quieten() -> None:
    """Drop Lightning's advertisements and one deprecation inside it that a user can do nothing about."""
    advertisement = ("litlogger", "litmodels")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(word in record.getMessage() for word in advertisement)
    )
    for noise in (".*treespec, LeafSpec.*", ".*Total length of `list` across ranks is zero.*"):
        warnings.filterwarnings("ignore", message=noise)
    for noise in (".*but have no `val_dataloader`.*", ".*not supported by the model summary.*"):
        warnings.filterwarnings("ignore", message=noise)
