"""Passes weights to vLLM in a safetensors file, which lies in memory that processes share."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lnlit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "lnlit-vllm-"
_HEADER_BYTES = 2**20


class WeightFiles:
    """Writes one file at a time in a private folder below `parent`, which exists from the first `write` to `close`.

    The folder is locked while its process lives. `write` removes folders that a killed process left behind.
    """

    def __init__(self, parent: str) -> None:
        self.parent = Path(parent)
        self._folder: Path | None = None
        self._remove: Callable[[], None] | None = None

    def write(self, tensors: Mapping[str, Tensor]) -> Path:
        """Writes `tensors` to a file that replaces the one before. If there is no room for both, the old file is
        removed first. Raises `UserError` before anything is written if there is no room for the new one alone."""
        from safetensors.torch import save_file

        folder = self._private_folder()
        needed = sum(tensor.nbytes for tensor in tensors.values()) + _HEADER_BYTES
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"weights_folder: {self.parent} has no room for the policy's weights: {needed} bytes are needed, "
                f"{free} are free. Free some, enlarge it (in a container --shm-size), or name another folder on this "
                "machine."
            )
        scratch, file = folder / "writing", folder / "weights.safetensors"
        try:
            scratch.touch(0o600)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
            scratch.chmod(0o600)
            scratch.rename(file)
        except Exception as error:
            scratch.unlink(missing_ok=True)
            if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
                raise UserError(f"weights_folder: {self.parent} cannot take the policy's weights: {error}.") from error
            raise
        return file

    def clear(self) -> None:
        """Removes the file."""
        if self._folder is not None:
            for file in self._folder.iterdir():
                file.unlink()

    def close(self) -> None:
        if self._remove is not None:
            self._remove()
        self._folder = self._remove = None

    def _private_folder(self) -> Path:
        if self._folder is None:
            try:
                for left_behind in _unlocked(self.parent):
                    shutil.rmtree(left_behind, ignore_errors=True)
                self._folder, lock = _locked_folder(self.parent)
            except OSError as error:
                raise UserError(
                    f"weights_folder: {self.parent} cannot be used: {error}. Name a folder on this machine, in memory."
                ) from error
            self._remove = weakref.finalize(self, _remove, self._folder, lock, os.getpid())
        return self._folder


def _remove(folder: Path, lock: int, owner: int) -> None:
    """Removes the folder when its process ends normally. A forked copy of the process does not remove it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # for its owner alone
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():  # nobody took it for one left behind before it was locked
            return folder, handle
        os.close(handle)


def _unlocked(parent: Path) -> Iterator[Path]:
    """The folders whose process has ended. Locks are used because a process id may belong to another container."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            yield folder
        finally:
            os.close(handle)
