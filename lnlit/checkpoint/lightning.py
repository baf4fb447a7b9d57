"""Checkpoints written by training: a Lightning .ckpt, file or folder, whose state dict holds the decoder under
`decoder.`.

`checkpoint["lnlit"]` is {"spec": the spec as JSON, "model": the model trained from, "tokenizer": the folder whose chat
template was taught or None, "lora": the adapters or None, "run": see `run_record`, "packed_runs": in how many runs the
parts with packed weights have their rows; an earlier lnlit, which knew no more than one, does not say}.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lnlit.checkpoint.foreign import what_file
from lnlit.checkpoint.formats import resolve
from lnlit.checkpoint.sharded import INDEX, REST, ShardedFolder
from lnlit.errors import UserError
from lnlit.files import listed
from lnlit.interfaces import CheckpointFormat
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.layout import check_shapes, set_packed_runs
from lnlit.models.lora import LoRA, add_lora
from lnlit.models.reward_head import RewardHead
from lnlit.models.weights import named_adapters, named_weights
from lnlit.specs import ModelSpec

#: The fields that a run resumes from, with their types, without those that callbacks and methods add.
_OF_A_RUN = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict}
_OF_A_RUN |= {"epoch": int, "global_step": int}
#: The fields of `checkpoint["lnlit"]` without which nothing can be read.
_OURS: dict[str, Any] = {"spec": dict | str, "lora": dict | None, "length": list, "total_steps": int | None}
PREFIX = "decoder."
_HEAD = "head.weight"
_NAME = re.compile(r"step-(\d+)\.ckpt")
_NO_TENSORS = "its state_dict is none of tensors by name"


class LightningCheckpoint(CheckpointFormat):
    """A single-file .ckpt or a sharded run's .ckpt folder, with its adapters merged in. Tensors are read when they are
    used; moments are never read."""

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".ckpt" and (path.is_file() or is_sharded(path))

    def read_spec(self, path: Path) -> ModelSpec:
        spec = _metadata(path)["spec"]
        return ModelSpec.from_json(json.loads(spec) if isinstance(spec, str) else spec, f"{path}: spec")

    def trained_from(self, path: Path) -> str | None:
        """The model that training started from."""
        return _metadata(path).get("model")

    def run(self, path: Path) -> dict[str, Any]:
        """The record of the run; empty in checkpoints of an earlier lnlit."""
        return _metadata(path).get("run") or {}

    def tokenizer_from(self, path: Path) -> str | None:
        """The model or folder whose tokenizer and chat template the checkpoint was trained with: the model's own, or
        one that the data named."""
        metadata = _metadata(path)
        return metadata.get("tokenizer") or metadata.get("model")

    def reward_head(self, path: Path) -> RewardHead | None:
        """The head of a reward model's checkpoint, or None for any other checkpoint."""
        opened = _Opened(path)
        if _HEAD not in opened.shapes:
            return None
        weight = opened.tensor(_HEAD)
        head = RewardHead(weight.shape[1])
        head.load_state_dict({"weight": weight})
        return head

    def lora(self, path: Path) -> LoRA | None:
        """The adapters that were trained, or None where all weights were."""
        lora = _metadata(path).get("lora")
        return LoRA(**lora) if lora else None

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        yield from named_weights(*self._saved(path))

    def adapters(self, path: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(canonical name, A, B) of each adapted weight."""
        yield from named_adapters(*self._saved(path))

    def _saved(self, path: Path) -> tuple[Decoder, Callable[[str], Tensor]]:
        """(a decoder without storage, what reads the saved value of a parameter by its name there)."""
        opened = _Opened(path)
        decoder = build_decoder(self.read_spec(path))
        set_packed_runs(decoder, _metadata(path).get("packed_runs", {}))
        if lora := self.lora(path):
            add_lora(decoder, lora)
        found = {name.removeprefix(PREFIX): shape for name, shape in opened.shapes.items() if name.startswith(PREFIX)}
        expected = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
        check_shapes(str(path), found, expected)
        return decoder, lambda name: opened.tensor(f"{PREFIX}{name}")


class _Opened:
    """The state dict of either kind of checkpoint: names and shapes, and one tensor at a time."""

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            folder = ShardedFolder(path)
            self.shapes, self.tensor = folder.shapes, folder.tensor
            return
        state = _rest(path).get("state_dict", {})
        if not _are_tensors(state):
            raise UserError(f"{path}: is damaged: {_NO_TENSORS}.")
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}
        self.tensor = state.__getitem__


def saved_names(path: Path) -> Collection[str]:
    """The names of all tensors in a checkpoint's state dict. Reads no tensor."""
    return _Opened(path).shapes.keys()


def tokenizer_source(path: Path) -> Path | None:
    """The model whose tokenizer belongs to a model: itself, or that with which a training checkpoint was trained."""
    checkpoint = LightningCheckpoint()
    if not checkpoint.recognises(path):
        return path
    origin = checkpoint.tokenizer_from(path)
    return resolve(origin) if origin else None


def checkpoint_folder(root: str | Path) -> Path:
    """The folder of a run's checkpoints."""
    return Path(root) / "checkpoints"


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def check_training_checkpoint(path: Path) -> None:
    """Raises `UserError`, saying what `path` is, unless a run can resume from it. Every `ckpt_path` is checked here.
    Reads no tensor."""
    if what := _no_checkpoint(path):
        raise UserError(
            f"ckpt_path: {path} is no checkpoint that a run can go on from. {what} Name a .ckpt that `lnlit fit` "
            "saved; to begin from the weights of a model, name the folder that `lnlit import` wrote as `model`."
        )


def check_run_state(path: Path) -> None:
    """Raises `UserError` for a checkpoint of weights only, which can be validated and exported but not resumed from,
    and for one that lacks other state of a run. Sharded checkpoints hold the optimizer's state separately."""
    state, of_optimizer = _rest(path), {"optimizer_states", "lr_schedulers"}
    if path.is_file() and not of_optimizer <= state.keys():
        raise UserError(
            f"ckpt_path: {path} holds weights and no state of the optimizer (ModelCheckpoint's save_weights_only), so "
            "no run can go on from it. To begin anew from its weights: `lnlit export` it, name that folder as `model`."
        )
    wanted = {name: kind for name, kind in _OF_A_RUN.items() if path.is_file() or name not in of_optimizer}
    if wrong := _wrong_field(state, wanted):
        raise UserError(f"ckpt_path: {path} is damaged: {wrong}. Go back to an earlier one.")


def _wrong_field(state: dict[str, Any], wanted: dict[str, Any]) -> str:
    """A description of the first field that is missing or of another type."""
    for name, kind in wanted.items():
        if name not in state:
            return f"it lacks {name}"
        if not isinstance(state[name], kind):
            return f"its {name} is a {type(state[name]).__name__}"
    return ""


def _damage(state: dict[str, Any], sharded: bool) -> str:
    """A description of what is wrong with the weights, or with lnlit's record beside them."""
    if not sharded and not _are_tensors(state.get("state_dict")):
        return _NO_TENSORS
    ours = state.get("lnlit")
    if ours is None:  # another method's, or not of lnlit: whoever reads it says so
        return ""
    return _wrong_field(ours, _OURS) if isinstance(ours, dict) else f"its lnlit is a {type(ours).__name__}"


def _no_checkpoint(path: Path) -> str:
    if path.is_dir() and not is_sharded(path):
        saved = [str(file) for pattern in ("*.ckpt", "checkpoints/*.ckpt") for file in listed(path, pattern)]
        if saved:
            return f"It is a folder that holds some: {', '.join(saved[-3:])}."
        return "It is a model folder." if (path / "config.json").is_file() else "It is a folder without one."
    try:
        state = _rest(path)
    except UserError as error:
        if path.is_dir() or _is_zip(path):
            return f"It is damaged or cut short; go back to an earlier one. ({error.__cause__ or error})"
        return what_file(path) or "It is no file of torch.save."
    if "pytorch-lightning_version" in state:
        wrong = _damage(state, sharded=path.is_dir())
        return f"It is damaged: {wrong}; go back to an earlier one." if wrong else ""
    return "It holds tensors and no state of a run." if path.is_dir() or _is_zip(path) else what_file(path)


def _is_zip(file: Path) -> bool:
    """True if the file begins like those of torch.save. The end may be missing."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def is_sharded(path: Path) -> bool:
    return (path / INDEX).is_file()


def _are_tensors(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())


def _metadata(path: Path) -> dict[str, Any]:
    metadata = _rest(path).get("lnlit")
    if isinstance(metadata, dict) and (wrong := _wrong_field({"lora": None, **metadata}, {"lora": dict | None})):
        raise UserError(f"{path}: is damaged: {wrong}.")
    if not isinstance(metadata, dict) or "spec" not in metadata:
        raise UserError(
            f"{path}: a Lightning checkpoint without an lnlit spec; only ones that `lnlit fit` wrote are read."
        )
    return metadata


def _rest(path: Path) -> dict[str, Any]:
    """All of a single file, or what a sharded checkpoint holds beside its tensors."""
    path = path / REST if path.is_dir() else path
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a checkpoint of plain tensors and data: {reason}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, and no checkpoint.")
    return found
