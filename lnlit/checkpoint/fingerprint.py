"""The identity of a model that results record: where it was, and a fingerprint that survives a move."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from lnlit.checkpoint.formats import PYPI, read_spec, resolve
from lnlit.errors import UserError
from lnlit.files import listed, write_json

#: Samples per file and bytes per sample: a whole tiny model, and of a large one 256 KiB spread over each file.
_SAMPLES, _BYTES = 64, 4096
#: The size in bytes from which on a file's digest is kept, because reading it takes a while.
_WORTH_KEEPING = 2**28
#: Seconds for which a file must not have changed. Within them, a second change might have the same time.
_SETTLED_S = 10


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
    goes unnoticed. It reads large files once; see `_content_digest`."""
    path = resolve(source)
    digest = hashlib.sha256(json.dumps(read_spec(path).to_json(), sort_keys=True).encode())
    for file in _weight_files(path):
        digest.update(bytes.fromhex(_content_digest(file)))
    return digest.hexdigest()


def _content_digest(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    That of a large file is kept in the user's cache folder (`$XDG_CACHE_HOME/lnlit/digests`, by default in `~/.cache`),
    and is its digest as long as its path, inode, size and times of modification and of change are the same. So content
    goes unnoticed only if it is changed behind the file system's back.
    """
    began, state = time.time_ns(), _state(file)
    kept = _kept_at(file) if file.stat().st_size >= _WORTH_KEEPING else None
    if kept is not None:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            found = json.loads(kept.read_text())
            if found["of"] == state:
                return str(found["sha256"])
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    is_settled = began - max(state[2:]) > _SETTLED_S * 10**9 and _state(file) == state
    if kept is not None and is_settled:
        with contextlib.suppress(OSError, UserError):  # where nothing can be kept, it is read again
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, {"file": str(file.resolve()), "of": state, "sha256": digest})
    return digest


def _kept_at(file: Path) -> Path | None:
    """The place in which a file's digest is kept, or None for a user without a home."""
    name = hashlib.sha256(str(file.resolve()).encode()).hexdigest()
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return cache / "lnlit" / "digests" / f"{name}.json"


def _state(file: Path) -> list[int]:
    """What a file system says of a file, some of which differs after any change. Times come last."""
    found = file.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _weight_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else listed(path, "*.safetensors") or listed(path, "**/*.distcp")
