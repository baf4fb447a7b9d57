"""LightningCLI with lnlit's names, defaults, errors and exit codes."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch.distributed.checkpoint.api import CheckpointException

import lnlit.callbacks
from lnlit import own
from lnlit.callbacks.checkpoints import check_unused, checkpoint_folder, list_checkpoints
from lnlit.callbacks.interrupt import stopped_by
from lnlit.checkpoint.lightning import check_run_state, check_training_checkpoint
from lnlit.cli import blame, plan_fit, trainer_flags
from lnlit.cli.explain import explained
from lnlit.cli.parser import StrictParser, rows_may_come
from lnlit.cli.written import Written
from lnlit.data.chat import chat_folder
from lnlit.errors import UserError
from lnlit.files import expanded
from lnlit.modules.lit_model import LitModel
from lnlit.modules.policy import Policy


class _Parser(StrictParser, LightningArgumentParser):
    def dump(self, *args: Any, **kwargs: Any) -> str:
        return own.restored(super().dump(*args, **kwargs))


class LitCLI(LightningCLI):
    """One command with its parser, trainer, model and data. As in Lightning, the constructor runs the command."""

    trainer: Any  # a Trainer: half of its attributes are set by its connectors, where no checker sees them

    def __init__(self, command: str, arguments: list[str], written: Written) -> None:
        self._command, self._written = command, written
        super().__init__(
            LightningModule,
            LightningDataModule,
            args=[command, *arguments],
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=dict(trainer_flags.DEFAULTS),
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lnlit"},
            parser_class=_Parser,
            auto_configure_optimizers=False,  # a training method owns its optimizer
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if self._command == "fit":
            parser.add_argument(
                "--check_memory",
                type=bool,
                default=True,
                help="refuse a run for which this machine's GPUs are too small",
            )

    def subcommands(self) -> dict[str, set[str]]:
        """Only the command that runs, because building the other parsers takes time."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    @property
    def flags(self) -> dict[str, Any]:
        """The trainer's flags as plain data."""
        return self.config[self._command].trainer.as_dict()

    def complete(self) -> dict[str, Any]:
        """The configuration with all defaults, as plain data."""
        return yaml.safe_load(self._parser(self._command).dump(self.config[self._command], skip_none=False))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        with explained(self._parser(self._command), self._written):
            self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Finds the checkpoint. Lightning's version would let its hyper-parameters override the configuration."""
        config = self.config[self._command]
        path = config.get("ckpt_path")
        if path == "last":
            folder = checkpoint_folder(config.trainer.default_root_dir)
            found = list_checkpoints(folder)
            config.ckpt_path = str(found[-1]) if found else None
            print(f"resuming from {found[-1]}" if found else f"no checkpoint in {folder} yet", file=sys.stderr)
        elif path == "best" and not Path(path).exists():
            raise UserError(
                "ckpt_path: which checkpoint is the best is known to the process that trained, and it is gone. Give "
                "the path of the file that ModelCheckpoint wrote, or 'last'."
            )
        elif path == "":
            raise UserError("ckpt_path: expected the path of a checkpoint, or 'last'; got an empty text.")
        elif path:
            file = expanded(path)
            if not file.exists():
                raise UserError(f"ckpt_path: there is no file or folder {str(path)!r}. Give a path, or 'last'.")
            config.ckpt_path = str(file)

    def instantiate_classes(self) -> None:
        """Builds the parts of the configuration, and turns their errors into `UserError`s."""
        with blame.building():
            super().instantiate_classes()

    def before_validate(self) -> None:
        """Refuses a bad checkpoint before any data is read."""
        if path := self.config[self._command].ckpt_path:
            self._check_checkpoint(Path(path))

    def before_fit(self) -> None:
        """Refuses a used folder and a bad checkpoint early, and logs the configuration as TensorBoard
        hyper-parameters."""
        if path := self.config[self._command].ckpt_path:
            self._check_checkpoint(Path(path))
            check_run_state(Path(path))
        if self.config[self._command].check_memory:
            plan_fit.refuse(self.model, self.datamodule, self.flags)
        checkpoints = any(isinstance(c, lnlit.callbacks.Checkpoint) for c in self.trainer.callbacks)
        if checkpoints and self.config[self._command].ckpt_path is None and not self.trainer.fast_dev_run:
            check_unused(self.trainer.default_root_dir)
        complete = self.complete()
        for logger in self.trainer.loggers:
            logger.log_hyperparams({key: complete[key] for key in ("seed_everything", "model", "data", "trainer")})

    def _check_checkpoint(self, path: Path) -> None:
        check_training_checkpoint(path)
        if isinstance(self.model, Policy) and self.model.reference is not None:
            self.model.reference.check_checkpoint(path)

    def after_fit(self) -> None:
        """Prints what can be done with a fully trained model."""
        finished = stopped_by(self.trainer) is None and not self.trainer.fast_dev_run
        if not (self.trainer.is_global_zero and finished) or chat_folder(self.datamodule) is None:
            return
        callbacks: list[Any] = self.trainer.callbacks
        written = [callback for callback in callbacks if isinstance(callback, lnlit.callbacks.ExportModel)]
        saved = list_checkpoints(checkpoint_folder(self.trainer.default_root_dir))
        tried = "lnlit chat DIR, lnlit eval DIR --tasks TASK"
        if written and written[0].adapter:
            print(f"next: lnlit import {quote(str(written[0].out))} DIR merges it, then {tried}", file=sys.stderr)
        elif written:
            print(f"next: {tried.replace('DIR', quote(str(written[0].out)))}", file=sys.stderr)
        elif saved and isinstance(self.model, LitModel):
            alone = "" if self.model.lora is None else " (with --adapter: the adapters alone, for PEFT)"
            print(f"next: lnlit export {quote(str(saved[-1]))} DIR{alone}, then {tried}", file=sys.stderr)

    def after_validate(self) -> None:
        """Raises `UserError` if nothing was validated."""
        if not sum(self.trainer.num_val_batches):
            raise UserError(
                "validate: there is nothing to validate on: the data has no validation rows, or the trainer takes none "
                "(limit_val_batches). Give data.val."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer with the default callbacks, except those that the configuration gives or switches off."""
        settings = self._get(self.config_init, "trainer")
        return trainer_flags.build({**settings, **kwargs}, lambda flags: self._instantiate_trainer(flags, []))


class _Read(Exception):
    """Raised when a configuration has been read completely."""


class _Reader(LitCLI):
    """Reads a configuration. It builds nothing, and leaves the random generators as they are."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        self._parse_ckpt_path()
        raise _Read(self)


def check(arguments: list[str]) -> None:
    """Raises `UserError` for a configuration that `fit` would refuse before building anything."""
    _read(arguments)


def resolved(arguments: list[str]) -> dict[str, Any]:
    """A fit's configuration with all defaults, as `--print_config` prints it. Raises `UserError` as `check` does."""
    return _read(arguments).complete()


def built(arguments: list[str]) -> LitCLI:
    """A fit's configuration with its model and data, but no trainer. Constructors take settings only, so nothing is
    loaded, and rows need not be there yet. Raises `UserError` as `fit` does."""
    cli = _read(arguments)
    parser = cli._parser("fit")
    rows_may_come(parser)
    parts = blame.built(parser, cli.config["fit"].clone())
    cli.model, cli.datamodule = parts["model"], parts["data"]
    return cli


def _read(arguments: list[str]) -> LitCLI:
    quieten()
    try:
        return _Reader("fit", arguments, Written(arguments))
    except _Read as read:
        return read.args[0]


def run(command: str, arguments: list[str], written: Written) -> int:
    """Runs one command. Returns 130 after Ctrl-C, 143 after SIGTERM, else 0. `written` holds the content of the files
    named in `arguments`."""
    try:
        return _exit_code(command_line(command, arguments, written))
    except SIGTERMException:
        return 128 + signal.SIGTERM
    except SystemExit as stop:  # --help or --print_config
        return int(stop.code or 0)


def command_line(command: str, arguments: list[str], written: Written) -> LitCLI:
    """Runs one command. Raises `UserError` for what the user can fix, and `KeyboardInterrupt` after Ctrl-C."""
    quieten()
    try:
        return LitCLI(command, arguments, written)
    except (UserError, MisconfigurationException) as error:
        raise UserError(str(error)) from error
    except CheckpointException as error:
        raise _of_shards(error) from error
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's exit after Ctrl-C
            raise KeyboardInterrupt from stop
        raise
    except Exception as error:
        blame.blamed(blame.while_running(error), error)


def _of_shards(error: CheckpointException) -> BaseException:
    """The error to raise for ranks that failed to write or read their shards: the first rank's `OSError`, or else a
    `UserError` which says that the checkpoint does not fit the run."""
    cause = next(found for found, _ in error.failures.values())
    if isinstance(cause, OSError):
        return cause
    return UserError(f"ckpt_path: the sharded checkpoint does not fit this run: {' '.join(str(cause).split())}")


def _exit_code(cli: LitCLI) -> int:
    """128 + the signal that stopped the run early, or 0."""
    received = stopped_by(cli.trainer)
    if received is None:
        return 0
    if cli.trainer.is_global_zero:
        saved = any(isinstance(callback, Checkpoint) for callback in cli.trainer.callbacks)
        advice = "; go on with --ckpt_path last" if saved else ", nothing saved: enable_checkpointing is false"
        print(f"stopped by {signal.Signals(received).name}{advice}", file=sys.stderr)
    return 128 + received


def quieten() -> None:
    """Hides Lightning's advertisements, a deprecation inside it that users can do nothing about, and the lines that
    `RunSummary` says in one."""
    unwanted = ("litlogger", "litmodels", "GPU available", "TPU available", "Automatic Mixed Precision")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(word in record.getMessage() for word in unwanted)
    )
    for noise in (".*treespec, LeafSpec.*", ".*Total length of `list` across ranks is zero.*"):
        warnings.filterwarnings("ignore", message=noise)
    for noise in (".*but have no `val_dataloader`.*", ".*not supported by the model summary.*"):
        warnings.filterwarnings("ignore", message=noise)
