"""The flags of the Trainer: lnlit's defaults, and checks of flags that Lightning accepts but lnlit cannot support."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from lnlit.callbacks import RunSummary, default_callbacks
from lnlit.cli import blame
from lnlit.cli.written import listed
from lnlit.errors import UserError

#: Folder of TensorBoard's files and the resolved configuration, within the run's `default_root_dir`.
LOGS = "logs"
DEFAULTS: dict[str, Any] = {
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": "", "version": LOGS, "default_hp_metric": False},
    },
    "default_root_dir": "runs",
    "log_every_n_steps": 1,  # a step of a language model takes longer than a line in a file
    "inference_mode": False,  # FSDP2's first forward pass cannot run in inference mode
    "use_distributed_sampler": False,  # our loaders place their rows themselves; a replaced sampler cannot resume
}

#: Flag -> (what is allowed, in words; a test of a value). Lightning divides by some of these without a check.
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "accumulate_grad_batches": ("at least 1", lambda value: value >= 1),
    "gradient_clip_val": ("a positive number, or 0 for none", lambda value: value >= 0 and math.isfinite(value)),
    "val_check_interval": ("more than 0", lambda value: isinstance(value, str | Mapping) or value > 0),
    "check_val_every_n_epoch": ("at least 1", lambda value: value >= 1),
    "num_sanity_val_steps": ("-1 for all, or at least 0", lambda value: value >= -1),
    "log_every_n_steps": ("at least 0", lambda value: value >= 0),
    "use_distributed_sampler": (
        "false: lnlit's loaders place their rows on ranks themselves, and a sampler that Lightning puts in their "
        "place cannot resume",
        lambda value: not value,
    ),
}
_WHERE_NODES_MEET = ("MASTER_ADDR", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "LSB_JOBID", "KUBERNETES_PORT")


def default_logger(root: str | Path = "runs") -> TensorBoardLogger:
    return TensorBoardLogger(root, "", LOGS, default_hp_metric=False)


def build(config: Mapping[str, Any], make: Callable[[dict[str, Any]], Trainer]) -> Trainer:
    """Calls `make` with all flags of the Trainer and with the default callbacks, except those that are given or
    switched off. Raises `UserError` for flags that lnlit cannot support."""
    flags = checked(config)
    given = listed(flags["callbacks"])
    off: list[type] = [Checkpoint] if flags["enable_checkpointing"] is False else []
    if flags["enable_progress_bar"] is False or any(isinstance(callback, ProgressBar) for callback in given):
        off.append(ProgressBar)
    if flags["enable_model_summary"] is False or any(isinstance(callback, ModelSummary) for callback in given):
        off.append(RunSummary)
    unwanted = (*off, *map(type, given))
    always = [] if flags["barebones"] else default_callbacks()
    flags["callbacks"] = [*given, *(callback for callback in always if not isinstance(callback, unwanted))]
    if not flags["barebones"]:
        flags["enable_model_summary"] = False  # RunSummary stands in the place of Lightning's table
    try:
        trainer = make(flags)
    except Exception as error:  # it has seen nothing but the user's settings
        raise UserError(f"trainer: {blame.while_building(error)}") from error
    check_trainer(trainer)
    return trainer


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flags for the Trainer. Raises `UserError` for one that lnlit cannot support."""
    flags = dict(config)
    for name, (allowed, fits) in _ALLOWED.items():
        value = flags.get(name)
        if value is not None and not fits(value):
            raise UserError(f"trainer.{name}: got {value}; allowed: {allowed}.")
    _check_machines(flags)
    logger = flags["logger"]
    ours = isinstance(logger, TensorBoardLogger) and logger.log_dir == str(Path("runs") / LOGS)  # not chosen
    if flags["barebones"]:  # Lightning refuses what it would have to switch off; the rest is the user's own to change
        flags["logger"] = None if ours else logger
        if flags["log_every_n_steps"] == DEFAULTS["log_every_n_steps"]:
            flags["log_every_n_steps"] = None
    elif ours:
        flags["logger"] = default_logger(flags["default_root_dir"])
    return flags


def _check_machines(flags: Mapping[str, Any]) -> None:
    nodes, devices, cores = flags["num_nodes"], flags["devices"], os.cpu_count() or 1
    if nodes > 1 and not any(name in os.environ for name in _WHERE_NODES_MEET):
        raise UserError(
            f"trainer.num_nodes: got {nodes}, and nothing says where the nodes meet. Start each of them with torchrun "
            "or under Slurm, or set MASTER_ADDR, MASTER_PORT and NODE_RANK."
        )
    processes = int(devices) if str(devices).isdigit() else 0
    if flags["accelerator"] == "cpu" and processes > max(cores, 8):
        raise UserError(f"trainer.devices: got {processes} processes for the {cores} cores of this machine.")


def check_trainer(trainer: Trainer) -> None:
    """Raises `UserError` if a rank would not be a process with its own rows, or if checkpoints would be written
    asynchronously."""
    strategy = trainer.strategy
    ranks_are_processes = type(strategy) is DDPStrategy and strategy._start_method == "popen"  # not spawned or forked
    if not ranks_are_processes and not isinstance(strategy, SingleDeviceStrategy | ModelParallelStrategy):
        launched = f" that starts ranks by {strategy._start_method}" if type(strategy) is DDPStrategy else ""
        raise UserError(
            f"trainer.strategy: {type(strategy).__name__}{launched} is not supported. Use auto, ddp, or "
            "ModelParallelStrategy for FSDP2 and tensor parallelism (`lnlit recipes show trainer/fsdp2`)."
        )
    if isinstance(strategy.checkpoint_io, AsyncCheckpointIO):
        raise UserError(
            "trainer.plugins: AsyncCheckpointIO is not supported: a checkpoint is renamed once it is whole, and this "
            "plugin returns before. Leave it out."
        )
