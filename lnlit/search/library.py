"""The block library on disk: every layer's candidates, one file per layer, and `library.json`, written last.

    library.json              what there is: parts, parameters, errors
    layer-000.safetensors     every candidate's weights of one layer, as "attention/kv1/self_attn.k_proj.weight"
    calibration.safetensors   the tokens [rows, length] that errors are measured on

A sub-block owns its norm. The parent's own weights are in the parent's checkpoint and not repeated; `noop` has none.
`library.json` holds a digest of every candidate's weights, so its own digest stands for the whole library.
Without `library.json` the folder is a library being built; each finished layer file says what it holds, so building
goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lnlit import __version__
from lnlit.errors import UserError, did_you_mean
from lnlit.files import check_format, expanded, read_json, replaced_file, write_json
from lnlit.schema import read
from lnlit.search.choice import SLOTS, STORED, At, BlockChoice, Half, LayerVariants, Variant, alone
from lnlit.specs import BlockSpec, ModelSpec

FORMAT = 1
INDEX, CALIBRATION = "library.json", "calibration.safetensors"
_ABOUT = "lnlit"  # the one metadata key of a layer file; with several, equal files would differ in their order
#: The module of each sub-block, and the norm that belongs to it.
MODULES: dict[Half, str] = {"attention": "self_attn", "ffn": "mlp"}
NORMS: dict[Half, str] = {"attention": "input_layernorm.weight", "ffn": "post_attention_layernorm.weight"}


@dataclass(frozen=True)
class _Index:
    """The content of `library.json`, apart from its origin."""

    model: str
    parent_spec: ModelSpec
    layers: tuple[LayerVariants, ...]


class Library:
    """A complete library. `open` reads `library.json` and looks at the files; weights are read when asked for.

    Attributes:
        folder: where it is.
        model: the parent's checkpoint, as `lnlit.checkpoint.formats.resolve` takes it.
        spec: the parent's architecture.
        layers: the choices of each layer.
        header: where it comes from (fingerprint of the parent, calibration, provenance).
    """

    def __init__(
        self, folder: Path, model: str, spec: ModelSpec, layers: tuple[LayerVariants, ...], header: Mapping[str, Any]
    ) -> None:
        self.folder, self.model, self.spec, self.layers, self.header = folder, model, spec, layers, header

    @classmethod
    def open(cls, folder: str | Path) -> Library:
        """Opens a library. Raises `UserError` for a folder that is none, is half-written, has another format or lacks a
        file."""
        folder = expanded(folder).resolve()
        if not (folder / INDEX).is_file():
            raise UserError(_not_a_library(folder))
        data = read_json(folder / INDEX, "a block library")
        check_format(data, FORMAT, folder / INDEX, "a block library")
        read_index: _Index = read(_Index, data, f"{folder / INDEX}:", then="Build the library anew.", others=True)
        layers, model, spec = read_index.layers, read_index.model, read_index.parent_spec
        if len(layers) != len(spec.layers):
            raise UserError(f"{folder / INDEX}: lists {len(layers)} layers, its parent has {len(spec.layers)}.")
        for index, layer in enumerate(layers):
            file = layer_file(folder, index)
            if not file.is_file():
                raise UserError(f"{file} is missing; copy the library again or rebuild it.")
            if _about(file).get("variants", data["layers"][index]) != data["layers"][index]:
                raise UserError(_replaced(file))
            for slot in SLOTS:
                if sum(variant.parent for variant in getattr(layer, slot).values()) != 1:
                    raise UserError(f"{folder / INDEX}: layers[{index}].{slot} must have one variant marked parent.")
        header = {key: data[key] for key in ("parent_sha256", "calibration", "provenance") if key in data}
        if any(
            _is_undigested(variant) for layer in layers for slot in SLOTS for variant in getattr(layer, slot).values()
        ):
            print(
                f"{folder}: an older lnlit built this library and kept no digests of its weights, so a layer file that "
                "was replaced since may go unseen",
                file=sys.stderr,
            )
        return cls(folder, model, spec, layers, header)

    @property
    def identity(self) -> dict[str, str]:
        """The folder and the digest of all that it holds, as recorded in files that are made from it."""
        return {"folder": str(self.folder), "sha256": hashlib.sha256((self.folder / INDEX).read_bytes()).hexdigest()}

    def check_made_from(self, recorded: Mapping[str, str] | None, what: str) -> None:
        """Raises `UserError` naming both if `what` was made from another library, according to what it `recorded`, or
        from an earlier state of this one. Prints a note if nothing was recorded."""
        if not recorded:
            print(f"{what}: does not say which library it was made from; taken as of {self.folder}", file=sys.stderr)
        elif recorded["sha256"] != self.identity["sha256"]:
            same = recorded["folder"] == str(self.folder)
            other = "which has changed since" if same else f"not from {self.folder}, whose candidates are others"
            raise UserError(
                f"{what}: was made from the library {recorded['folder']}, {other}, whatever their names. Name the "
                "library that it was made from, or make it again from this one."
            )

    def check_parent(self, model: str, spec: ModelSpec, fingerprint: str) -> None:
        """Raises `UserError` unless this library was made from `model`, which is given by its origin, architecture and
        fingerprint (see `lnlit.checkpoint.fingerprint`). The parent may have been moved."""
        if changes := self.spec.diff(spec):
            reason = f"First difference: {changes[0]}."
        elif (known := self.header.get("parent_sha256")) is None:  # made before fingerprints were recorded
            reason = "" if model == self.model else "It does not record whether the two are equal: name that one."
        else:
            reason = "" if fingerprint == known else "The architectures are equal, the weights differ."
        if reason:
            raise UserError(
                f"model: {model} is not the parent of {self.folder}, which was made from {self.model}. {reason}"
            )

    def calibration(self) -> Tensor:
        """The tokens that errors are measured on, int64 [rows, length]; each row is one document."""
        file = self.folder / CALIBRATION
        try:
            with safe_open(file, framework="pt", backend="pread") as tensors:
                return tensors.get_tensor("tokens").long()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read ({error}); copy the library again or rebuild it.") from error

    def choice(self, at: At) -> BlockChoice:
        """The choice behind the name of a block. `UserError` for one that the layer cannot have."""
        variants = self.layers[at.layer]
        found = BlockChoice.among(at.name, variants.attention, variants.ffn)
        if found is None:
            raise UserError(
                f"layer {at.layer}: there is no choice {at.name!r} in the library {self.folder}. "
                f"Attention: {', '.join(variants.attention)}; FFN: {', '.join(variants.ffn)}."
            )
        return found

    def choices(self, names: Sequence[str]) -> list[BlockChoice]:
        """A solution's choices by their names, one per layer. `UserError` for one that the library does not have."""
        if len(names) != len(self.layers):
            raise UserError(
                f"the solution chooses {len(names)} blocks, {self.folder} has {len(self.layers)} layers; "
                "they belong to different models."
            )
        return [self.choice(At(layer, "block", name)) for layer, name in enumerate(names)]

    def block_spec(self, layer: int, choice: BlockChoice) -> BlockSpec:
        """The architecture of a choice. Raises `UserError` for a name that the layer does not have."""
        return BlockSpec(*(self._variant(layer, slot, name).part for slot, name in zip(SLOTS, choice, strict=True)))

    def composed_spec(self, choices: Sequence[BlockChoice]) -> ModelSpec:
        """The parent's architecture with the chosen blocks."""
        return self.spec.replace(layers=tuple(self.block_spec(layer, choice) for layer, choice in enumerate(choices)))

    def composed_layers(
        self, choices: Sequence[BlockChoice], parent: Iterable[Mapping[str, Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        """Each layer's weights by their names below the block; `parent` yields the parent's layers likewise."""
        for layer, (choice, weights) in enumerate(zip(choices, parent, strict=True)):
            yield self.block_weights(layer, choice, weights)

    def weights(self, at: At) -> dict[str, Tensor]:
        """A candidate's weights by their checkpoint names below the block, norm included; {} for `noop`.

        Of a block, those of a pair that was trained together. The parent's own variants are not in the library:
        `UserError`.
        """
        known = self.layers[at.layer].of(at.slot)
        if at.slot != "block" and self._variant(at.layer, at.slot, at.name).parent:
            raise UserError(
                f"layer {at.layer}: {at.slot} {at.name!r} is the parent's own; its weights are in {self.model}."
            )
        if at.name not in known:
            raise UserError(f"layer {at.layer}: no pair {at.name!r}. There are: {', '.join(known) or 'none'}.")
        file, prefix = layer_file(self.folder, at.layer), _prefix(at)
        try:
            with safe_open(file, framework="pt", backend="pread") as tensors:
                keys = [key for key in tensors.keys() if key.startswith(prefix)]  # noqa: SIM118  safe_open is no mapping
                found = {key.removeprefix(prefix): tensors.get_tensor(key) for key in keys}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read ({error}); copy the library again or rebuild it.") from error
        digest = known[at.name].sha256
        if digest is not None and weights_digest(found) != digest:
            raise UserError(_replaced(file))
        return found

    def block_weights(self, layer: int, choice: BlockChoice, parent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights of a choice by their checkpoint names below the block, for `lnlit.models.build.load_block`.

        `parent` holds the parent layer's own weights by the same names. A pair that was trained together wins over
        its two halves.
        """
        if str(choice) in self.layers[layer].pairs:
            return self.weights(At(layer, "block", str(choice)))
        composed: dict[str, Tensor] = {}
        for slot, name in zip(SLOTS, choice, strict=True):
            own = self._variant(layer, slot, name).parent
            composed |= slot_weights(slot, parent) if own else self.weights(At(layer, slot, name))
        return composed

    def replacement(self, at: At, parent: Mapping[str, Tensor]) -> tuple[BlockSpec, dict[str, Tensor]]:
        """The block to use in the place of the candidate `at`: its architecture and its weights. `parent` holds the
        parent layer's own weights by their checkpoint names below the block."""
        if at.slot == "block":
            choice = self.choice(at)
            return self.block_spec(at.layer, choice), self.block_weights(at.layer, choice, parent)
        variant = self._variant(at.layer, at.slot, at.name)
        return alone(at.slot, variant.part), slot_weights(at.slot, parent) if variant.parent else self.weights(at)

    def _variant(self, layer: int, slot: Half, name: str) -> Variant:
        choices: Mapping[str, Variant] = getattr(self.layers[layer], slot)
        if name not in choices:
            hint = did_you_mean(name, choices)
            raise UserError(f"layer {layer}: no {slot} variant {name!r}.{hint} There are: {', '.join(choices)}.")
        return choices[name]


def slot_weights(slot: Half, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a block's weights that belongs to one slot, its norm included."""
    part = f"{MODULES[slot]}."
    return {name: tensor for name, tensor in weights.items() if name.startswith(part) or name == NORMS[slot]}


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def layer_file(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:03d}.safetensors"


class LibraryWriter:
    """A library being built, layer by layer and in any order, by one process or several that write different layers.

    A layer file appears whole or not at all and records what it was made by; a writer of the same `recipe` finds it
    done. `finish` writes `library.json`, which makes the folder a library.

    Args:
        out: Folder to build in. Refused when it is a library already or holds anything but layers of this recipe.
        recipe: JSON data that determines the library (parent, calibration, candidates, ...).
    """

    def __init__(self, out: str | Path, recipe: Mapping[str, Any]) -> None:
        self.folder = expanded(out).resolve()
        self._recipe = json.loads(json.dumps(recipe))
        if (self.folder / INDEX).exists():
            raise UserError(f"{self.folder}: is a block library already. Choose another folder or delete it.")
        found = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for file in found:
            if not file.name.startswith(".") and _about(file).get("recipe") != self._recipe:
                raise UserError(
                    f"{self.folder}: holds {file.name}, which is no part of the library to be built there (another "
                    "model, calibration or set of candidates). Choose another folder or delete it."
                )

    def has(self, layer: int) -> bool:
        return layer_file(self.folder, layer).is_file()

    def write(self, layer: int, variants: LayerVariants, weights: Mapping[At, Mapping[str, Tensor]]) -> None:
        """`weights` are the candidates', by their checkpoint names below the block, norm included."""
        variants = _with_digests(layer, variants, weights)
        tensors = {
            _prefix(at) + key: tensor.detach().cpu().clone().contiguous()  # files hold no shared memory
            for at, candidate in weights.items()
            for key, tensor in candidate.items()
        }
        self._save(layer_file(self.folder, layer), tensors, variants=layer_to_json(variants))

    def write_calibration(self, tokens_RT: Tensor) -> None:
        """The tokens that errors are measured on; each row is one document."""
        self._save(self.folder / CALIBRATION, {"tokens": tokens_RT.int().contiguous()})

    def _save(self, file: Path, tensors: dict[str, Tensor], **about: Any) -> None:
        metadata = {_ABOUT: json.dumps({"recipe": self._recipe, **about}, allow_nan=False)}
        with replaced_file(file) as scratch:
            save_file(tensors, scratch, metadata=metadata)

    def finish(self, model: str, spec: ModelSpec, header: Mapping[str, Any]) -> Library:
        """Write `library.json`; every layer must be there. `header` goes into it, see `Library`."""
        if absent := [layer for layer in range(len(spec.layers)) if not self.has(layer)]:
            raise UserError(f"{self.folder}: layer {absent[0]} is not there yet; the library is not complete.")
        layers = [_about(layer_file(self.folder, layer))["variants"] for layer in range(len(spec.layers))]
        data = {"format": FORMAT, "lnlit": __version__, "model": model, **header, "parent_spec": spec.to_json()}
        write_json(self.folder / INDEX, {**data, "layers": layers})
        return Library.open(self.folder)


def layer_to_json(layer: LayerVariants) -> dict[str, Any]:
    """One entry of `library.json`'s "layers". Errors that were not measured are left out."""
    return {
        stored: {
            name: {key: value for key, value in asdict(choice).items() if value is not None and value is not False}
            for name, choice in layer.of(slot).items()
        }
        for slot, stored in STORED.items()
    }


def _with_digests(layer: int, variants: LayerVariants, weights: Mapping[At, Mapping[str, Tensor]]) -> LayerVariants:
    digested: dict[str, Any] = {
        stored: {
            name: replace(choice, sha256=weights_digest(own) if (own := weights.get(At(layer, slot, name))) else None)
            for name, choice in variants.of(slot).items()
        }
        for slot, stored in STORED.items()
    }
    return LayerVariants(**digested)


def _prefix(at: At) -> str:
    return f"{STORED[at.slot]}/{at.name}/"


def _is_undigested(variant: Variant) -> bool:
    return variant.sha256 is None and not variant.parent and variant.parameters > 0


def _replaced(file: Path) -> str:
    return (
        f"{file}: is not the file that {INDEX} was written with: it was replaced or changed since. Copy the library "
        "again, or rebuild it."
    )


def _about(file: Path) -> dict[str, Any]:
    """What a layer file records about itself; {} for any other file."""
    try:
        with safe_open(file, framework="pt", backend="pread") as tensors:
            return json.loads((tensors.metadata() or {})[_ABOUT])
    except (SafetensorError, OSError, KeyError, ValueError):
        return {}


def _not_a_library(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: there is no such folder. `lnlit search library` builds one."
    if layers := len(list(folder.glob("layer-*.safetensors"))):
        return (
            f"{folder}: a half-built library ({layers} layers, no {INDEX}). Run the command that was building it again."
        )
    return f"{folder}: not a block library, it has no {INDEX}. `lnlit search library` builds one."
