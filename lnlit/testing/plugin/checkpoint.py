"""A checkpoint format of your own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import CheckpointFormat
from lnlit.specs import ModelSpec


class Example(CheckpointFormat):
    """A folder with the spec in `example.json` and weights under canonical names in `weights.safetensors`."""

    def recognises(self, path: Path) -> bool:
        return (path / "example.json").is_file()

    def read_spec(self, path: Path) -> ModelSpec:
        try:
            return ModelSpec.from_json(json.loads((path / "example.json").read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise UserError(f"{path / 'example.json'}: is not JSON: {error}") from error

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        with safe_open(path / "weights.safetensors", "pt") as file:
            for name in file.keys():  # noqa: SIM118  a file is no dict
                yield name, file.get_tensor(name)
