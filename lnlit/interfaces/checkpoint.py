"""Socket `checkpoint`: reads one on-disk model format.

Weights cross this boundary under Hugging Face's Llama names (`model.layers.3.mlp.up_proj.weight`), the one canonical
naming in lnlit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lnlit.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


class CheckpointFormat(ABC):
    """One format. Raises `UserError` for a file that is missing, truncated or does not fit its own header."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like this format. Reads at most a small header."""

    @abstractmethod
    def read_spec(self, path: Path) -> ModelSpec:
        """The architecture, without reading weights."""

    @abstractmethod
    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        """Every weight once as (canonical name, CPU tensor), one at a time, so memory stays near the largest tensor."""
