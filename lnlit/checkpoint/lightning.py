"""Checkpoints that training writes: a Lightning .ckpt whose state dict holds the decoder under `decoder.`.

`checkpoint["lnlit"]` is {"spec": the spec as JSON, "model": the model trained from, "lora": the adapters or None}.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lnlit.errors import UserError
from lnlit.interfaces import CheckpointFormat
from lnlit.models.build import build_decoder
from lnlit.models.layout import check_shapes
from lnlit.models.lora import LoRA, add_lora
from lnlit.models.reward_head import RewardHead
from lnlit.models.weights import canonical_weights
from lnlit.specs import ModelSpec

PREFIX = "decoder."


class LightningCheckpoint(CheckpointFormat):
    """A single-file .ckpt, its adapters merged in. Tensors stay on disk until they are used."""

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".ckpt" and (path.is_file() or (path / ".metadata").is_file())

    def read_spec(self, path: Path) -> ModelSpec:
        spec = _metadata(_open(path), path)["spec"]
        return ModelSpec.from_json(json.loads(spec) if isinstance(spec, str) else spec, f"{path}: spec")

    def trained_from(self, path: Path) -> str | None:
        """The model that training started from; its tokenizer is the checkpoint's."""
        return _metadata(_open(path), path).get("model")

    def reward_head(self, path: Path) -> RewardHead | None:
        """What a reward model's checkpoint holds beside the decoder; None for any other."""
        weight = _open(path).get("state_dict", {}).get("head.weight")
        if weight is None:
            return None
        head = RewardHead(weight.shape[1])
        head.load_state_dict({"weight": weight})
        return head

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        checkpoint = _open(path)
        state = {
            name.removeprefix(PREFIX): value
            for name, value in checkpoint.get("state_dict", {}).items()
            if name.startswith(PREFIX)
        }
        decoder = build_decoder(self.read_spec(path))
        if lora := _metadata(checkpoint, path).get("lora"):
            add_lora(decoder, LoRA(**lora))
        expected = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
        check_shapes(str(path), {name: tuple(value.shape) for name, value in state.items()}, expected)
        decoder.load_state_dict(state, assign=True)
        yield from canonical_weights(decoder)


def _metadata(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    metadata = checkpoint.get("lnlit")
    if not isinstance(metadata, dict) or "spec" not in metadata:
        raise UserError(
            f"{path}: a Lightning checkpoint without an lnlit spec; only ones that `lnlit fit` wrote are read."
        )
    return metadata


def _open(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(
            f"{path}: a sharded checkpoint folder. Consolidate it first: python -m lightning.pytorch.utilities."
            f"consolidate_checkpoint {path} --output_file {path.stem}-full.ckpt"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a checkpoint of plain tensors and data: {reason}") from error
