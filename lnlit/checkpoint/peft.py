"""PEFT's adapter folders (`adapter_config.json`, `adapter_model.safetensors`): merged into their base, and as the start
of a run."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lnlit.checkpoint.fingerprint import fingerprint
from lnlit.checkpoint.foreign import PICKLES
from lnlit.checkpoint.formats import open_checkpoint, read_spec, resolve, written
from lnlit.checkpoint.hf import CONFIG, named_model_type
from lnlit.checkpoint.lightning import tokenizer_source
from lnlit.checkpoint.names import stored_names, stored_shapes
from lnlit.checkpoint.peft_config import ADAPTER_CONFIG, PeftConfig
from lnlit.checkpoint.safetensors_folder import EMBEDDING, HEAD, SafetensorsFolder, has_weights
from lnlit.checkpoint.tokenizer import TOKENIZER_FILES, save_tokenizer, take_tokenizer
from lnlit.errors import UserError
from lnlit.interfaces import CheckpointFormat
from lnlit.interfaces.checkpoint import Sliced
from lnlit.models.block import Packed
from lnlit.models.decoder import Decoder
from lnlit.models.layout import Shape, expected_shapes, layout
from lnlit.models.lora import LoRA, is_adapted, put, with_adapter
from lnlit.specs import ModelSpec

ADAPTER_WEIGHTS = "adapter_model.safetensors"
#: The metadata of that file under which lnlit writes the fingerprint of the base.
BASE = "lnlit_base"
_MAGNITUDE = "magnitude_vector"
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_(A|B|magnitude_vector)(?:\.weight)?")
#: PEFT copies the base's embedding and head where the head has an adapter, or where it thinks that they have changed.
_COPY = re.compile(r"base_model\.model\.(lm_head|model\.embed_tokens)\.(?:base_layer\.)?weight")


def is_adapter(path: Path) -> bool:
    """True for a folder with an adapter and no model beside it."""
    return (path / ADAPTER_CONFIG).is_file() and not has_weights(path)


def tensor_name(module: str, factor: str) -> str:
    """The name in a PEFT folder of a module's factor "A" or "B", or of DoRA's "magnitude_vector"."""
    return f"base_model.model.{module}.lora_{factor}{'' if factor == _MAGNITUDE else '.weight'}"


class Adapter:
    """The adapters in a PEFT folder. Opening reads the configuration and the header, and checks them against each
    other.

    Attributes:
        widths: (inputs, outputs) of each adapted linear, by its module's name in the base's own class.
        copies: The names of whole tensors of the base, by their canonical names.
    """

    def __init__(self, folder: Path) -> None:
        if not is_adapter(folder):
            raise UserError(
                f"{folder}: is no PEFT adapter: that has {ADAPTER_CONFIG}, and no weights of a model beside."
            )
        self.folder, self.config = folder, PeftConfig.read(folder / ADAPTER_CONFIG)
        file = folder / ADAPTER_WEIGHTS
        if not file.is_file():
            pickle = "adapter_model.bin"
            what = f" It holds {pickle}; {PICKLES}" if (folder / pickle).is_file() else ""
            raise UserError(f"{folder}: it lacks {ADAPTER_WEIGHTS}.{what}")
        self._tensors = SafetensorsFolder(folder, file)
        self.copies = {f"{match[1]}.weight": name for name in self._tensors.shapes if (match := _COPY.fullmatch(name))}
        self.widths = {module: self._width(module) for module in self._modules()}
        if not self.widths:
            raise UserError(f"{file}: holds no tensor. Save the adapter again.")

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B of a module."""
        return self._finite(tensor_name(module, "A")), self._finite(tensor_name(module, "B"))

    def magnitude(self, module: str) -> Tensor | None:
        """The lengths of a module's rows, or None without DoRA."""
        return self._finite(tensor_name(module, _MAGNITUDE)) if self.config.has_magnitudes else None

    def _finite(self, name: str) -> Tensor:
        tensor = self._tensors.read(name)
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{self.folder / ADAPTER_WEIGHTS}: tensor {name} has a value that is no finite number.")
        return tensor

    def check_copy(self, name: str, tensor: Tensor) -> None:
        """Raises `UserError` if the folder has another tensor of the base under this name: it was trained too."""
        if name in self.copies and not torch.equal(self._tensors.read(self.copies[name]).to(tensor.dtype), tensor):
            raise UserError(
                f"{self.folder / ADAPTER_WEIGHTS}: tensor {self.copies[name]} is another one than the base's {name}. "
                "Adapters of linears are read, and no whole matrix that was trained beside them."
            )

    def scale(self, module: str) -> float:
        return self.config.alpha_of(module) / self.config.rank_of(module)

    def _modules(self) -> list[str]:
        file, found = self.folder / ADAPTER_WEIGHTS, {}
        wanted = {"A", "B", *([_MAGNITUDE] if self.config.has_magnitudes else [])}
        for name in sorted(self._tensors.shapes.keys() - self.copies.values()):
            match = _FACTOR.fullmatch(name)
            if match is None or match[2] not in wanted or name != tensor_name(match[1], match[2]):
                raise UserError(f"{file}: tensor {name} is no factor of a linear's adapter; only those are read.")
            found.setdefault(match[1], set()).add(match[2])
        for module, factors in found.items():
            if missing := wanted - factors:
                raise UserError(f"{file}: tensor {tensor_name(module, min(missing))} is missing. Copy the file again.")
        return list(found)

    def _width(self, module: str) -> tuple[int, int]:
        a, b = (self._tensors.shapes[tensor_name(module, factor)] for factor in "AB")
        rank = self.config.rank_of(module)
        if len(a) != 2 or len(b) != 2 or (a[0], b[1]) != (rank, rank):
            raise UserError(
                f"{self.folder}: the factors of {module} are {list(a)} and {list(b)}, and {ADAPTER_CONFIG} says rank "
                f"{rank}. The two files are not of one adapter."
            )
        if self.config.has_magnitudes and (found := self._tensors.shapes[tensor_name(module, _MAGNITUDE)]) != (b[0],):
            raise UserError(f"{self.folder}: {module} has {list(found)} lengths of rows, and {b[0]} rows.")
        return a[1], b[0]


def tell_other_base(folder: Path, base: str) -> None:
    """Warns on stderr if an adapter that lnlit wrote was trained on other weights than a base has."""
    with safe_open(Adapter(folder).folder / ADAPTER_WEIGHTS, framework="pt") as tensors:  # which it has checked
        trained_on = (tensors.metadata() or {}).get(BASE)
    if trained_on and trained_on != fingerprint(base):
        print(
            f"warning: {folder} was trained on other weights than those of {base}. That is right only for the same "
            "base in another dtype or format.",
            file=sys.stderr,
        )


# merged into a base


class PeftFolder(CheckpointFormat):
    """A PEFT folder as the model that its base becomes with it: the base's tensors, with `scale * B A` added to some.

    It is not registered: what is made of an adapter would depend on a base that no configuration names.

    Args:
        base: The base model; None is the one that adapter_config.json names.
    """

    def __init__(self, base: str | None = None) -> None:
        self._given = base

    def recognises(self, path: Path) -> bool:
        return is_adapter(path)

    def base(self, path: Path) -> str:
        """The base that is named. Raises `UserError` if it is not here."""
        file = path / ADAPTER_CONFIG
        name = self._given or PeftConfig.read(file).base
        if name is None:
            raise UserError(f"{file}: base_model_name_or_path names no model. Say which one it is: --base MODEL.")
        try:
            found = resolve(name)
        except UserError as error:
            if self._given:
                raise
            raise UserError(f"{path}: its base is not here: {error} Then say where it is: --base DIR.") from error
        if is_adapter(found):
            raise UserError(f"{path}: its base {name} is an adapter itself; `lnlit import` that first, for --base.")
        return name

    def read_spec(self, path: Path) -> ModelSpec:
        return read_spec(self.base(path))

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor[(slice(None),) * len(tensor.shape)]) for name, tensor in self.slices(path))

    def slices(self, path: Path) -> Iterator[tuple[str, Sliced]]:
        adapter, base = Adapter(path), resolve(self.base(path))
        checkpoint = open_checkpoint(base)
        spec = checkpoint.read_spec(base)
        places = _places(adapter, spec, base)
        for name, tensor in checkpoint.slices(base):
            same = (EMBEDDING, HEAD) if name == EMBEDDING and spec.tie_embeddings else (name,)
            for copy in adapter.copies.keys() & same:
                adapter.check_copy(copy, tensor[(slice(None), slice(None))])
            yield name, _Adapted(name, tensor, adapter, *places[name]) if name in places else tensor


@dataclass(frozen=True)
class _Adapted:
    """A tensor with its adapter added. Its rows are those from `first` on of what the module called `module` has."""

    name: str
    tensor: Sliced
    adapter: Adapter
    module: str
    first: int

    @property
    def shape(self) -> Sequence[int]:
        return self.tensor.shape

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        (a, b), lengths = self.adapter.factors(self.module), self.adapter.magnitude(self.module)
        rows, columns = index
        b = b.narrow(0, self.first, self.shape[0])[rows]
        if lengths is None:
            weight = self.tensor[index]
            found = with_adapter(weight, a[:, columns], b, self.adapter.scale(self.module))
        else:  # of whole rows
            weight, lengths = self.tensor[rows, :], lengths.narrow(0, self.first, self.shape[0])[rows]
            whole = with_adapter(weight, a, b, self.adapter.scale(self.module), lengths)
            weight, found = weight[:, columns], whole[:, columns]
        if bool((~found.isfinite() & weight.isfinite()).any()):
            raise UserError(f"{self.adapter.folder}: with it {self.name} has numbers that {weight.dtype} cannot hold.")
        return found


def _places(adapter: Adapter, spec: ModelSpec, base: Path) -> dict[str, tuple[str, int]]:
    """Maps each canonical tensor that has an adapter to (module, the tensor's first row in it)."""
    linears, parts = base_linears(spec, base)
    for module, (inputs, outputs) in adapter.widths.items():
        if module not in linears:
            raise UserError(
                f"{adapter.folder}: it adapts {module}, and the base {base} has no such linear. Is that its base? "
                f"--base MODEL names another one. Linears of the base: {', '.join(leaves(linears))}."
            )
        if linears[module] != (outputs, inputs):
            raise UserError(
                f"{adapter.folder}: it adapts {module} as {outputs} x {inputs}, and in the base {base} that is "
                f"{' x '.join(map(str, linears[module]))}. Is that its base? --base MODEL names another one."
            )
    if missing := adapter.config.missing(linears, adapter.widths):
        raise UserError(
            f"{adapter.folder}: {ADAPTER_CONFIG} says that {missing[0]} is adapted, of which {ADAPTER_WEIGHTS} has "
            f"nothing ({len(missing)} such linears). Copy the adapter again."
        )
    shapes, places = expected_shapes(spec), {}
    for module in adapter.widths:
        first = 0
        for name in parts[module]:
            places[name] = (module, first)
            first += shapes[name][0]
    return places


def base_type(base: Path) -> str:
    """The model type of transformers' class of a base, or "" where only its spec says which one there will be."""
    return named_model_type(tokenizer_source(base) or base)


def base_linears(spec: ModelSpec, base: Path) -> tuple[dict[str, Shape], dict[str, list[str]]]:
    """(the shapes of the linears in transformers' class of a base, by module; the canonical tensors in each)."""
    rules, shapes = written(spec, base_type(base)).export.names, expected_shapes(spec)
    held, found = stored_names(shapes, rules), stored_shapes(shapes, rules)
    left_out = {EMBEDDING, *([HEAD] if spec.tie_embeddings else [])}
    linears = [name for name in found if len(found[name]) == 2 and name.endswith(".weight") and name not in left_out]
    modules = {name: name.removesuffix(".weight") for name in linears}
    return {modules[name]: found[name] for name in linears}, {modules[name]: held[name] for name in linears}


def leaves(modules: Iterable[str]) -> list[str]:
    """The last parts of modules' names, each once."""
    return sorted({module.rpartition(".")[2] for module in modules})


@contextmanager
def tokenizer_of_adapter(folder: Path, base: str) -> Iterator[Path | None]:
    """The folder of the tokenizer that belongs to an adapter: that of its base, or a temporary one where the adapter
    has its own, whose chat template it may have been taught with."""
    source = tokenizer_source(resolve(base))
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        yield source
        return
    with tempfile.TemporaryDirectory() as scratch:
        if source is not None:
            save_tokenizer(source, Path(scratch))
            if (source / CONFIG).is_file():
                shutil.copyfile(source / CONFIG, Path(scratch) / CONFIG)
        take_tokenizer(folder, Path(scratch))
        yield Path(scratch)


# the start of a run


def start_of(decoder: Decoder, lora: LoRA) -> Mapping[str, tuple[Tensor, Tensor]]:
    """The adapters of the folder `lora.adapter`: the names of the decoder's adapted modules -> (A, B).

    Raises `UserError` unless they are those of `lora`, with its rank and alpha.
    """
    adapter = Adapter(resolve(str(lora.adapter)))
    _check_same(adapter, lora)
    if adapter.config.has_magnitudes:
        raise UserError(
            f"lora.adapter: {adapter.folder} is of DoRA, which runs do not train. `lnlit import` merges it."
        )
    if adapter.copies:
        raise UserError(
            f"lora.adapter: {adapter.folder} holds {', '.join(adapter.copies)} of its base. `lnlit import` merges it."
        )
    wanted: dict[str, list[str]] = {}
    for name, slot in layout(decoder).items():
        module, _, leaf = slot.parameter.rpartition(".")
        if leaf == "weight" and is_adapted(decoder.get_submodule(module)):
            wanted.setdefault(module, []).append(name.removesuffix(".weight"))
    every = [part for parts in wanted.values() for part in parts]
    for these, those, what in ((every, adapter.widths, "lacks"), (adapter.widths, every, "has")):
        if other := [module for module in these if module not in those]:
            raise UserError(
                f"lora.adapter: {adapter.folder} {what} an adapter of {other[0]}, unlike this run ({len(other)} such "
                f"linears). It adapts {', '.join(leaves(adapter.widths))}; lora.targets are {', '.join(lora.targets)}."
            )
    return {module: _stacked(adapter, module, parts, decoder) for module, parts in wanted.items()}


def fill_adapters(decoder: Decoder, start: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Copies this rank's parts of A and B into a decoder's adapters."""
    for module, factors in start.items():
        for part, whole in zip(("lora_a", "lora_b"), factors, strict=True):
            put(decoder.get_parameter(f"{module}.{part}.weight"), whole)


def _check_same(adapter: Adapter, lora: LoRA) -> None:
    config = adapter.config
    ranks = {config.rank_of(module) for module in adapter.widths}
    alphas = {config.alpha_of(module) for module in adapter.widths}
    if len(ranks) > 1 or len(alphas) > 1:
        raise UserError(
            f"lora.adapter: {adapter.folder} has ranks {sorted(ranks)} and alphas {sorted(alphas)}, and a run has one "
            "of each. `lnlit import` merges it; then begin with new adapters."
        )
    (rank,), (alpha,) = ranks, alphas
    if (rank, alpha) != (lora.rank, lora.alpha):
        raise UserError(
            f"lora.adapter: {adapter.folder} has rank {rank} and alpha {alpha:g}, this run {lora.rank} and "
            f"{lora.alpha:g}. Set lora: {{rank: {rank}, alpha: {alpha!r}, targets: "
            f"[{', '.join(leaves(adapter.widths))}], adapter: {lora.adapter}}}."
        )


def _stacked(adapter: Adapter, module: str, parts: Sequence[str], decoder: Decoder) -> tuple[Tensor, Tensor]:
    """A and B of one of the decoder's modules, which may hold several of the folder's, one below the other."""
    factors = [adapter.factors(part) for part in parts]
    stack = decoder.packed_weights().get(f"{module}.weight", Packed(tuple(parts)))
    a, b = factors[0][0], stack.join([b for _, b in factors])
    if any(not torch.equal(a, other) for other, _ in factors):
        raise UserError(
            f"lora.adapter: {adapter.folder} adapts {' and '.join(parts)} each by itself, and this run both by one "
            "matrix. Set runtime.fuse_gate_up: false and name them in lora.targets."
        )
    found = decoder.get_submodule(module)
    shapes = tuple(tuple(getattr(found, part).weight.shape) for part in ("lora_a", "lora_b"))
    if (tuple(a.shape), tuple(b.shape)) != shapes:
        raise UserError(
            f"lora.adapter: {adapter.folder} has factors {list(a.shape)} and {list(b.shape)} for {module}, and the "
            f"model needs {list(shapes[0])} and {list(shapes[1])}. It is of another base."
        )
    return a, b
