"""The identity of a model that results record: where it was, and a fingerprint that survives a move."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lnlit.checkpoint.formats import PYPI, read_spec, resolve

#: Samples per file and bytes per sample: a whole tiny model, and of a large one 256 KiB spread over each file.
_SAMPLES, _BYTES = 64, 4096


def model_source(source: str) -> str:
    """The source of a model: `pypi:<distribution>` unchanged, or else the absolute path."""
    return source if source.startswith(PYPI) else str(resolve(source).resolve())


def fingerprint(source: str) -> str:
    """SHA-256 over names, sizes and evenly spaced samples of a checkpoint's weight files.

    It is cheap for any size. Training changes every matrix, so samples distinguish its result from its start, but a
    single edited value may go unnoticed. Copies and moved checkpoints keep their fingerprint; converted ones do not.
    """
    path = resolve(source)
    digest = hashlib.sha256()
    for file in _weight_files(path):
        size = file.stat().st_size
        name = "" if path.is_file() else str(file.relative_to(path))  # a single file may be renamed
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(size * sample // _SAMPLES)
                digest.update(stream.read(_BYTES))
    return digest.hexdigest()


def weights_digest(source: str) -> str:
    """SHA-256 over the architecture and the whole content of a checkpoint's weight files, in which no changed value
    goes unnoticed. It reads all of them."""
    path = resolve(source)
    digest = hashlib.sha256(json.dumps(read_spec(path).to_json(), sort_keys=True).encode())
    for file in _weight_files(path):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _weight_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.safetensors")) or sorted(path.rglob("*.distcp"))
