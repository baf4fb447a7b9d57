"""Checkpoints that training writes: a Lightning .ckpt, file or folder, whose state dict holds the decoder under
`decoder.`.

`checkpoint["lnlit"]` is {"spec": the spec as JSON, "model": the model trained from, "tokenizer": the folder
whose chat template was taught or None, "lora": the adapters or None}.
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

from lnlit.checkpoint.foreign import what_file
from lnlit.checkpoint.sharded import INDEX, REST, ShardedFolder
from lnlit.errors import UserError
from lnlit.interfaces import CheckpointFormat
from lnlit.models.build import build_decoder
from lnlit.models.layout import check_shapes
from lnlit.models.lora import LoRA, add_lora
from lnlit.models.reward_head import RewardHead
from lnlit.models.weights import named_weights
from lnlit.specs import ModelSpec

PREFIX = "decoder."
_HEAD = "head.weight"


class LightningCheckpoint(CheckpointFormat):
    """A single-file .ckpt or a sharded run's .ckpt folder, its adapters merged in. Tensors stay on disk until they are
    used, and moments altogether.
    """

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".ckpt" and (path.is_file() or is_sharded(path))

    def read_spec(self, path: Path) -> ModelSpec:
        spec = _metadata(_Opened(path).rest, path)["spec"]
        return ModelSpec.from_json(json.loads(spec) if isinstance(spec, str) else spec, f"{path}: spec")

    def trained_from(self, path: Path) -> str | None:
        """The model that training started from."""
        return _metadata(_Opened(path).rest, path).get("model")

    def tokenizer_from(self, path: Path) -> str | None:
        """Whose tokenizer and chat template the checkpoint was trained with: the model's, or a folder's that the data
        named."""
        metadata = _metadata(_Opened(path).rest, path)
        return metadata.get("tokenizer") or metadata.get("model")

    def reward_head(self, path: Path) -> RewardHead | None:
        """What a reward model's checkpoint holds beside the decoder; None for any other."""
        opened = _Opened(path)
        if _HEAD not in opened.shapes:
            return None
        weight = opened.tensor(_HEAD)
        head = RewardHead(weight.shape[1])
        head.load_state_dict({"weight": weight})
        return head

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        opened = _Opened(path)
        decoder = build_decoder(self.read_spec(path))
        if lora := _metadata(opened.rest, path).get("lora"):
            add_lora(decoder, LoRA(**lora))
        found = {name.removeprefix(PREFIX): shape for name, shape in opened.shapes.items() if name.startswith(PREFIX)}
        expected = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
        check_shapes(str(path), found, expected)
        yield from named_weights(decoder, lambda name: opened.tensor(f"{PREFIX}{name}"))


class _Opened:
    """Either kind of checkpoint: names and shapes of its state dict, one tensor at a time, and the `rest`."""

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            folder = ShardedFolder(path)
            self.rest, self.shapes, self.tensor = _load(path / REST), folder.shapes, folder.tensor
            return
        self.rest = _load(path)
        state: dict[str, Tensor] = self.rest.get("state_dict", {})
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}
        self.tensor = state.__getitem__


def check_training_checkpoint(path: Path) -> None:
    """Raises `UserError`, saying what `path` is, unless a run can go on from it: everything that is named as a
    `ckpt_path` goes through here. Reads no tensor.
    """
    if what := _no_checkpoint(path):
        raise UserError(
            f"ckpt_path: {path} is no checkpoint that a run can go on from. {what} Name a .ckpt that `lnlit fit` "
            "saved; to begin from the weights of a model, name the folder that `lnlit import` wrote as `model`."
        )


def check_optimizer_state(path: Path) -> None:
    """Raises `UserError` for a checkpoint of weights alone, which can be validated and exported but not trained on.
    Sharded ones always hold the rest.
    """
    if path.is_file() and not {"optimizer_states", "lr_schedulers"} <= _load(path).keys():
        raise UserError(
            f"ckpt_path: {path} holds weights and no state of the optimizer (ModelCheckpoint's save_weights_only), so "
            "no run can go on from it. To begin anew from its weights: `lnlit export` it, name that folder as `model`."
        )


def _no_checkpoint(path: Path) -> str:
    if path.is_dir() and not is_sharded(path):
        saved = [str(file) for pattern in ("*.ckpt", "checkpoints/*.ckpt") for file in sorted(path.glob(pattern))]
        if saved:
            return f"It is a folder that holds some: {', '.join(saved[-3:])}."
        return "It is a model folder." if (path / "config.json").is_file() else "It is a folder without one."
    try:
        state = _load(path / REST if path.is_dir() else path)
    except UserError as error:
        if path.is_dir() or _is_zip(path):
            return f"It is damaged or cut short; go back to an earlier one. ({error.__cause__})"
        return what_file(path) or "It is no file of torch.save."
    if "pytorch-lightning_version" in state:
        return ""
    return "It holds tensors and no state of a run." if path.is_dir() or _is_zip(path) else what_file(path)


def _is_zip(file: Path) -> bool:
    """Whether it begins as torch.save's files do; their end may be missing."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def is_sharded(path: Path) -> bool:
    return (path / INDEX).is_file()


def _metadata(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    metadata = checkpoint.get("lnlit")
    if not isinstance(metadata, dict) or "spec" not in metadata:
        raise UserError(
            f"{path}: a Lightning checkpoint without an lnlit spec; only ones that `lnlit fit` wrote are read."
        )
    return metadata


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a checkpoint of plain tensors and data: {reason}") from error
