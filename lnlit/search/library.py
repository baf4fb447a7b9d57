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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lnlit import __version__
from lnlit.errors import UserError, did_you_mean
from lnlit.files import expanded, read_json, replaced_file, write_json
from lnlit.schema import Whole, read
from lnlit.specs import BlockSpec, ModelSpec, PartSpec

FORMAT = 1
INDEX, CALIBRATION = "library.json", "calibration.safetensors"
_ABOUT = "lnlit"  # the one metadata key of a layer file; with several, equal files would differ in their order
Slot = Literal["attention", "ffn", "pairs"]
SLOTS: tuple[Literal["attention", "ffn"], ...] = ("attention", "ffn")
#: The norm that a sub-block owns.
NORMS = {"attention": "input_layernorm.weight", "ffn": "post_attention_layernorm.weight"}


@dataclass(frozen=True)
class Variant:
    """One choice for one slot of one layer.

    Errors are normalised: squared distance of the block's output to the parent block's, over that output's square,
    the block being the variant beside the parent's other sub-block, fed with the parent's activations. `sha256` is of
    the weights; None for the parent's own, for none, and in libraries from before it was kept.
    """

    part: PartSpec
    parameters: Whole
    parent: bool = False
    init_error: float | None = None
    trained_error: float | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Pair:
    """Both slots of one layer trained together (coupled distillation). Errors are those of the block they make."""

    parameters: Whole
    init_error: float | None = None
    trained_error: float | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class LayerVariants:
    """The choices of one layer by name, the parent's own first."""

    attention: Mapping[str, Variant]
    ffn: Mapping[str, Variant]
    pairs: Mapping[str, Pair] = field(default_factory=dict)


@dataclass(frozen=True)
class _Index:
    """What `library.json` has, beside where it comes from."""

    model: str
    parent_spec: ModelSpec
    layers: tuple[LayerVariants, ...]


def pair_name(attention: str, ffn: str) -> str:
    """Name of a whole block's choice, as "kv1+i768"."""
    return f"{attention}+{ffn}"


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
        """Raises `UserError` for a folder that is no library, a half-written one, another format, a missing file."""
        folder = expanded(folder).resolve()
        if not (folder / INDEX).is_file():
            raise UserError(_not_a_library(folder))
        data = read_json(folder / INDEX, "a block library")
        if data.get("format") != FORMAT:
            raise UserError(
                f"{folder / INDEX}: format {data.get('format')!r}; this lnlit reads {FORMAT}. Update lnlit."
            )
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
        """Where it is, and the digest of all it holds, as what is made from it records."""
        return {"folder": str(self.folder), "sha256": hashlib.sha256((self.folder / INDEX).read_bytes()).hexdigest()}

    def check_made_from(self, recorded: Mapping[str, str] | None, what: str) -> None:
        """Raises `UserError` naming both when `what` was made from another library, by what it `recorded` of that, or
        from this one as it was before. Says so where nothing was recorded.
        """
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
        """Raises `UserError` unless this library was made from `model`, given by its origin, architecture and
        fingerprint (see `lnlit.checkpoint.fingerprint`). The parent may have moved.
        """
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

    def parent_names(self, layer: int) -> tuple[str, str]:
        """The parent's own choice of a layer, as ("kv3", "i1536")."""
        choices = self.layers[layer]
        return _parent_name(choices.attention), _parent_name(choices.ffn)

    def block_spec(self, layer: int, attention: str, ffn: str) -> BlockSpec:
        """The architecture of a choice. Raises `UserError` for a name that the layer does not have."""
        return BlockSpec(self._variant(layer, "attention", attention).part, self._variant(layer, "ffn", ffn).part)

    def weights(self, layer: int, slot: Slot, name: str) -> dict[str, Tensor]:
        """A candidate's weights by their checkpoint names below the block, norm included; {} for `noop`.

        For slot "pairs" both slots' weights. The parent's own variants are not in the library: `UserError`.
        """
        if slot != "pairs" and self._variant(layer, slot, name).parent:
            raise UserError(f"layer {layer}: {slot} {name!r} is the parent's own; its weights are in {self.model}.")
        if slot == "pairs" and name not in self.layers[layer].pairs:
            raise UserError(
                f"layer {layer}: no pair {name!r}. There are: {', '.join(self.layers[layer].pairs) or 'none'}."
            )
        file, prefix = layer_file(self.folder, layer), f"{slot}/{name}/"
        try:
            with safe_open(file, framework="pt", backend="pread") as tensors:
                keys = [key for key in tensors.keys() if key.startswith(prefix)]  # noqa: SIM118  safe_open is no mapping
                found = {key.removeprefix(prefix): tensors.get_tensor(key) for key in keys}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read ({error}); copy the library again or rebuild it.") from error
        known = getattr(self.layers[layer], slot)[name].sha256
        if known is not None and weights_digest(found) != known:
            raise UserError(_replaced(file))
        return found

    def block_weights(self, layer: int, attention: str, ffn: str, parent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights of a choice by their checkpoint names below the block, for `lnlit.models.build.load_block`.

        `parent` holds the parent layer's own weights by the same names. A pair that was trained together wins over
        its two halves.
        """
        if (name := pair_name(attention, ffn)) in self.layers[layer].pairs:
            return self.weights(layer, "pairs", name)
        composed: dict[str, Tensor] = {}
        for slot, choice in zip(SLOTS, (attention, ffn), strict=True):
            own = self._variant(layer, slot, choice).parent
            composed |= slot_weights(slot, parent) if own else self.weights(layer, slot, choice)
        return composed

    def _variant(self, layer: int, slot: str, name: str) -> Variant:
        choices: Mapping[str, Variant] = getattr(self.layers[layer], slot)
        if name not in choices:
            hint = did_you_mean(name, choices)
            raise UserError(f"layer {layer}: no {slot} variant {name!r}.{hint} There are: {', '.join(choices)}.")
        return choices[name]


def slot_weights(slot: Literal["attention", "ffn"], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a block's weights that belongs to one slot, its norm included."""
    part = {"attention": "self_attn.", "ffn": "mlp."}[slot]
    return {name: tensor for name, tensor in weights.items() if name.startswith(part) or name == NORMS[slot]}


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values."""
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
        out: folder to build in. Refused when it is a library already or holds anything but layers of this recipe.
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

    def write(
        self, layer: int, variants: LayerVariants, weights: Mapping[tuple[Slot, str], Mapping[str, Tensor]]
    ) -> None:
        """`weights[slot, name]` are a candidate's, by their checkpoint names below the block, norm included."""
        variants = _with_digests(variants, weights)
        tensors = {
            f"{slot}/{name}/{key}": tensor.detach().cpu().clone().contiguous()  # files hold no shared memory
            for (slot, name), candidate in weights.items()
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
        for name in ("layer-*.safetensors", CALIBRATION, INDEX):
            for leftover in self.folder.glob(f".{name}.*"):  # scratch of a writer that was killed
                leftover.unlink()
        write_json(self.folder / INDEX, {**data, "layers": layers})
        return Library.open(self.folder)


def layer_to_json(layer: LayerVariants) -> dict[str, Any]:
    """One entry of `library.json`'s "layers". Errors that were not measured are left out."""
    slots: dict[str, dict[str, Any]] = {slot: {} for slot in (*SLOTS, "pairs")}
    for slot, choices in slots.items():
        for name, choice in getattr(layer, slot).items():
            choices[name] = {
                key: value for key, value in asdict(choice).items() if value is not None and value is not False
            }
    return slots


def _with_digests(layer: LayerVariants, weights: Mapping[tuple[Slot, str], Mapping[str, Tensor]]) -> LayerVariants:
    slots: dict[Slot, Mapping[str, Any]] = {"attention": layer.attention, "ffn": layer.ffn, "pairs": layer.pairs}
    digested: dict[str, Any] = {
        slot: {
            name: replace(choice, sha256=weights_digest(own) if (own := weights.get((slot, name))) else None)
            for name, choice in choices.items()
        }
        for slot, choices in slots.items()
    }
    return LayerVariants(**digested)


def _is_undigested(variant: Variant) -> bool:
    return variant.sha256 is None and not variant.parent and variant.parameters > 0


def _replaced(file: Path) -> str:
    return (
        f"{file}: is not the file that {INDEX} was written with: it was replaced or changed since. Copy the library "
        "again, or rebuild it."
    )


def _about(file: Path) -> dict[str, Any]:
    """What a layer file says about itself; {} for any other file."""
    try:
        with safe_open(file, framework="pt", backend="pread") as tensors:
            return json.loads((tensors.metadata() or {})[_ABOUT])
    except (SafetensorError, OSError, KeyError, ValueError):
        return {}


def _parent_name(choices: Mapping[str, Variant]) -> str:
    return next(name for name, variant in choices.items() if variant.parent)


def _not_a_library(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: there is no such folder. `lnlit search library` builds one."
    if layers := len(list(folder.glob("layer-*.safetensors"))):
        return (
            f"{folder}: a half-built library ({layers} layers, no {INDEX}). Run the command that was building it again."
        )
    return f"{folder}: not a block library, it has no {INDEX}. `lnlit search library` builds one."
