"""The commands as Python functions: `lnlit.fit("run.yaml", {"model.optimizer.learning_rate": 1e-5})`.

They accept and refuse the same as the command line. A mistake is a `UserError` and never exits.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lnlit.cli.main import told
from lnlit.errors import UserError, unknown_key

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lnlit.planning.plan import Plan

#: One YAML file or several, of which later ones take precedence.
Config = str | Path | Sequence[str | Path]


@told
def fit(config: Config, overrides: Mapping[str, Any] | None = None) -> Trainer:
    """Train as `lnlit fit` does. Returns the trainer: its `callback_metrics`, `lightning_module` and `datamodule`.

    Args:
        config: A YAML file; of several, later ones win.
        overrides: Key -> value, as options of the command line: `{"trainer.max_steps": 10, "model.lora.rank": 8}`.
            `{"ckpt_path": "last"}` goes on from a checkpoint.

    A run that a signal has stopped, with a checkpoint, ends in `KeyboardInterrupt`.
    """
    return _stage("fit", config, overrides)


@told
def validate(config: Config, overrides: Mapping[str, Any] | None = None) -> Trainer:
    """Run the validation loop of a configuration as `lnlit validate` does; see `fit`."""
    return _stage("validate", config, overrides)


def _stage(command: str, config: Config, overrides: Mapping[str, Any] | None) -> Trainer:
    from lnlit.callbacks.interrupt import stopped_by
    from lnlit.cli.train import command_line
    from lnlit.cli.written import Written

    given = arguments(config, overrides)
    trainer = command_line(command, given, Written(given)).trainer
    if stopped_by(trainer) is not None:
        raise KeyboardInterrupt
    return trainer


@told
def stage(config: str | Path, overrides: Mapping[str, Any] | None = None) -> Path:
    """Run a stage, as of `lnlit search`, from its YAML file, whose key `stage` says which; returns the path it wrote.
    Each is a function of its own as well: `search_solve`, `rollout_annotate`, ...
    """
    from lnlit.cli.pipeline import mapping_of
    from lnlit.cli.stage_commands import of_stage

    name = str(mapping_of(Path(config)).get("stage"))
    return of_stage(name).result(name, arguments(config, overrides))


def arguments(config: Config, overrides: Mapping[str, Any] | None) -> list[str]:
    """The equivalent command line: files, and overrides as options."""
    files = [config] if isinstance(config, str | Path) else config
    found = [part for file in files for part in ("--config", str(file))]
    for key, value in (overrides or {}).items():
        if key.rpartition(".")[2] in ("help", "print_config", "config"):
            raise UserError(f"overrides: {key!r} is for the command line alone. Leave it out.")
        found.append(f"--{key}={_text(value, key)}")
    return found


def _text(value: Any, key: str) -> str:
    """A value as the command line spells it."""
    try:
        return str(value) if isinstance(value, str | Path) else json.dumps(value)
    except TypeError:
        raise UserError(
            f"overrides: {key} is {value!r:.80}; expected what a YAML file can hold. Name a class by "
            '{"class_path": ..., "init_args": {...}}, or use lnlit.trainer().fit(method, data).'
        ) from None


@told
def trainer(**flags: Any) -> Trainer:
    """A Lightning Trainer with the flags, callbacks and TensorBoard logger that `lnlit fit` gives it.

    A flag given here wins over our default, and a callback over the default one of its class. As ever with Lightning,
    the random seed is yours to set: `lightning.seed_everything(0)`.
    """
    from lightning.pytorch import Trainer

    from lnlit.cli import trainer_flags
    from lnlit.cli.train import quieten

    quieten()
    allowed = inspect.signature(Trainer).parameters
    for flag in flags:
        if flag not in allowed:
            raise unknown_key("trainer", flag, allowed)
    defaults = {name: parameter.default for name, parameter in allowed.items()} | trainer_flags.DEFAULTS
    defaults["logger"] = trainer_flags.default_logger()
    return trainer_flags.build(defaults | flags, lambda config: Trainer(**config))


@told
def run(
    folder: str | Path,
    *,
    from_: str | None = None,
    until: str | None = None,
    only: str | None = None,
    again: Sequence[str] = (),
    runs: str | Path = "runs",
) -> None:
    """Run a folder of numbered stages as `lnlit run` does; finished ones are skipped.

    A stage is a process of its own, so what it says goes to standard error. Raises `UserError` where one has failed.
    """
    from lnlit.cli.run import main

    given = {"--from": from_, "--until": until, "--only": only}
    options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    options += [part for stage in again for part in ("--again", str(stage))]
    if code := main([str(folder), *options, "--runs", str(runs)]):
        raise UserError(f"{folder}: a stage has ended with exit code {code}; standard error says why.")


@told
def plan(
    config: Config, overrides: Mapping[str, Any] | None = None, *, gpu: str | None = None, gpus: int | None = None
) -> list[Plan]:
    """What stages take on a number of GPUs, as `lnlit plan` prints it: a `Plan` for each stage.

    Args:
        config: A folder of numbered stages, or the YAML file of one; of several files, later ones win.
        overrides: As for `fit`, for one configuration.
        gpu: A kind of GPU, or "cpu"; this machine's by default.
        gpus: How many; by default as many as the configuration asks for.
    """
    from lnlit.cli.plan import planned

    if isinstance(config, str | Path) and Path(config).is_dir():
        return planned(config, gpu, gpus)
    files = [config] if isinstance(config, str | Path) else list(config)
    return planned(files, gpu, gpus, arguments([], overrides))


@told
def chat(
    model: str | Path,
    prompt: str,
    *,
    thinking: Literal["on", "off", "none"] | None = None,
    system: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """A model folder's answer to one message, as `lnlit chat MODEL --prompt` prints it."""
    from lnlit.cli.chat import Chat, check_text

    for text in (prompt, system or ""):
        check_text(text)
    loaded = Chat(str(model), thinking, system, max_new_tokens, temperature, top_p, seed)
    return loaded.answer(prompt, lambda text: None)


@told
def data_show(config: str | Path, rows: int = 1) -> None:
    """Print the first packed rows of a configuration's data as `lnlit data show` does."""
    from lnlit.cli.data import main

    main(["show", str(config), "--rows", str(rows)])
