"""Folders of `torch.distributed.checkpoint`, as sharded runs write them: one tensor at a time, in one process.

torch's own readers load all of a checkpoint, moments too, and unpickle its index without restriction.
"""

from __future__ import annotations

import pickle
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import metadata as index
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo

from lnlit.errors import UserError

#: The index, and the file that Lightning writes beside the shards for everything that is not a tensor.
INDEX, REST = ".metadata", "meta.pt"
_STATE = "state_dict"


class ShardedFolder:
    """The `state_dict` of a sharded checkpoint. Opening it reads the index only; a tensor is read when it is asked for,
    from those of the files that hold a part of it, and moments never are.

    Attributes:
        shapes: of the whole tensors, by name.

    Raises `UserError` for an index that cannot be read, and when a shard is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._reader = path, _Reader(path)
        try:
            found = self._reader.read_metadata().state_dict_metadata
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError, TypeError) as error:
            raise UserError(f"{path / INDEX}: cannot be read as a checkpoint's index: {error}") from error
        self._tensors = {
            name.removeprefix(f"{_STATE}."): entry
            for name, entry in found.items()
            if name.startswith(f"{_STATE}.") and isinstance(entry, index.TensorStorageMetadata)
        }
        self.shapes = {name: tuple(entry.size) for name, entry in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, on the CPU, in the dtype in which it was saved."""
        entry = self._tensors[name]
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        with warnings.catch_warnings():  # about there being no process group, which is as it should be
            warnings.simplefilter("ignore")
            try:
                dcp.load({_STATE: {name: whole}}, storage_reader=self._reader, no_dist=True)
            except (dcp.api.CheckpointException, OSError, RuntimeError, pickle.UnpicklingError) as error:
                reason = next(
                    (line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
                )
                raise UserError(f"{self.path}: tensor {name} cannot be read: {reason.strip()}") from error
        return whole


class _Reader(FileSystemReader):
    """Reads the index once, and lets it name nothing but the classes that an index is made of."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> index.Metadata:
        return self._index

    @cached_property
    def _index(self) -> index.Metadata:
        with (Path(self.path) / INDEX).open("rb") as stream:
            return _IndexUnpickler(stream).load()


class _IndexUnpickler(pickle.Unpickler):
    _CLASSES = (
        index.Metadata,
        index.MetadataIndex,
        index.TensorStorageMetadata,
        index.BytesStorageMetadata,
        index.ChunkStorageMetadata,
        index.TensorProperties,
        index.StorageMeta,
        index._MEM_FORMAT_ENCODING,
        _StorageInfo,
        torch.Size,
    )

    def find_class(self, module: str, name: str) -> Any:
        for cls in self._CLASSES:
            if (module, name) == (cls.__module__, cls.__name__):
                return cls
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) == ("torch.serialization", "_get_layout"):
            return getattr(torch.serialization, name)
        if module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath"):  # where it was saved
            return _joined
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of a checkpoint does")


def _joined(*parts: str) -> str:
    return "/".join(parts)
