"""What is known of the models of a pipeline before they exist."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lnlit.checkpoint.formats import PYPI, read_spec
from lnlit.search.space import Candidates
from lnlit.specs import ModelSpec


class Known:
    """Architectures by the paths of models: of those on disk, and of those that earlier stages write."""

    def __init__(self) -> None:
        self.specs: dict[str, ModelSpec] = {}
        self.candidates: dict[str, Candidates] = {}  # of libraries
        self.parents: dict[str, str] = {}  # of libraries

    def spec(self, path: str) -> ModelSpec:
        if path.startswith(PYPI) or Path(path).exists() or path not in self.specs:
            return read_spec(path)
        return self.specs[path]

    def writes(self, outs: Sequence[str], path: str) -> None:
        """Says that `outs` will be like the model at `path`, or no larger."""
        for out in outs:
            self.specs[out] = self.spec(path)
            self.specs[f"{out}/model"] = self.specs[out]  # of a sweep

    def improves(self, library: str, out: str) -> None:
        """Says that the library `out` will have the candidates of another one."""
        if library in self.candidates:
            self.candidates[out] = self.candidates[library]
        if library in self.parents:
            self.parents[out] = self.parents[library]
