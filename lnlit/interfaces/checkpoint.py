"""Interface `checkpoint`: reads one on-disk model format, and writes it if it can.

Weights pass this interface under Hugging Face's Llama names (`model.layers.3.mlp.up_proj.weight`), the only naming that
lnlit uses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lnlit.errors import UserError
from lnlit.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


class Sliced(Protocol):
    """A tensor of which a part can be had, on the CPU: `sliced[2:4, :]`."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor: ...


@dataclass(frozen=True)
class Export:
    """The files of a model folder, beside the tokenizer and lnlit.json, that other programs need to load it."""

    #: config.json. Token ids and dtype are added when it is written.
    config: Mapping[str, Any]
    #: Maps a layer's modules in the folder to lnlit's modules that they stack along dim 0, e.g.
    #: `{"self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}`, or one renamed.
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: Further text files by name, such as the modeling code that `config["auto_map"]` names.
    files: Mapping[str, str] = field(default_factory=dict)


class CheckpointFormat(ABC):
    """One on-disk format. Methods that read raise `UserError` for a file that is missing, truncated or does not fit its
    own header."""

    #: The `model_type` in config.json; "" if the format has no config.json.
    model_type: ClassVar[str] = ""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """True if `path` looks like this format. Reads a small header at most."""

    @abstractmethod
    def read_spec(self, path: Path) -> ModelSpec:
        """The architecture of the model at `path`, without reading weights."""

    @abstractmethod
    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        """Yields every weight once as (canonical name, CPU tensor). Tensors are read one at a time, so that memory
        stays near the size of the largest."""

    def slices(self, path: Path) -> Iterator[tuple[str, Sliced]]:
        """Like `weights`, for a rank that has a part of each: a format that can reads no more of a tensor than is
        indexed."""
        return self.weights(path)

    def export(self, spec: ModelSpec) -> Export:
        """The files that express `spec` in this format, so that reading them gives `spec` again.

        The caller has left out arguments that have their default and replaced parts with packed weights by unpacked
        ones. Raises `UserError` naming the first layer that this format cannot express. A format that is read only does
        not override this method.
        """
        raise UserError(f"{type(self).__name__} is a format that is read only.")

    def obstacles(self, spec: ModelSpec, folder: Path | None) -> Mapping[str, Sequence[str]]:
        """The programs that cannot load an exported folder, each with its reasons, e.g. `{"llama.cpp": ["it knows no
        ..."]}`. `folder` is where the tokenizer lies."""
        return {}
