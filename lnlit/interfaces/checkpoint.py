"""Socket `checkpoint`: reads one on-disk model format, and writes it where it can.

Weights cross this boundary under Hugging Face's Llama names (`model.layers.3.mlp.up_proj.weight`), the one canonical
naming in lnlit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lnlit.errors import UserError
from lnlit.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Export:
    """What a folder holds beside tokenizer and lnlit.json, for other programs to load it."""

    #: config.json. Token ids and dtype are added when it is written.
    config: Mapping[str, Any]
    #: Names of a layer's modules in the folder -> those that lnlit has there, stacked along dim 0, as
    #: `{"self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}`. One alone is renamed.
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: Texts by file name, as the modeling code that `config["auto_map"]` names.
    files: Mapping[str, str] = field(default_factory=dict)


class CheckpointFormat(ABC):
    """One format. Raises `UserError` for a file that is missing, truncated or does not fit its own header."""

    #: What config.json calls this format; "" where it has no config.json.
    model_type: ClassVar[str] = ""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like this format. Reads at most a small header."""

    @abstractmethod
    def read_spec(self, path: Path) -> ModelSpec:
        """The architecture, without reading weights."""

    @abstractmethod
    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        """Every weight once as (canonical name, CPU tensor), one at a time, so memory stays near the largest tensor."""

    def export(self, spec: ModelSpec) -> Export:
        """How this format says `spec`, whose parts name no argument that has its default and none that packs weights.

        Raises `UserError` that names the first layer which this format cannot hold. What is written must be read as
        `spec` again. A format that only reads keeps this one.
        """
        raise UserError(f"{type(self).__name__} is a format that is read only.")

    def obstacles(self, spec: ModelSpec, folder: Path | None) -> Mapping[str, Sequence[str]]:
        """What keeps readers from a folder that was exported so, as `{"llama.cpp": ["it knows no ..."]}`; `folder` is
        where its tokenizer lies. Whoever is not named loads it.
        """
        return {}
